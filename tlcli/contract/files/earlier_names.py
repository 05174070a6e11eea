"""Former names of fields, still accepted in files of earlier versions."""

from __future__ import annotations

from pydantic import AliasChoices

IMAGES_FIELD = AliasChoices("images", "pictures")
