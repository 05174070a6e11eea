"""Former field names that are still accepted when reading files from earlier versions."""

from __future__ import annotations

from pydantic import AliasChoices

IMAGES_FIELD = AliasChoices("images", "pictures")
