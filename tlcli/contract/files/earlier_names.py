"""Names that fields had in files of earlier versions, which are still read."""

from __future__ import annotations

from pydantic import AliasChoices

IMAGES_FIELD = AliasChoices("images", "pictures")
