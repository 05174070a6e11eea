"""Contents of the images of a run, read from its saved split. Needs no PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

from tlcli.training.settings.run_file_names import SPLIT


def read_fingerprints(run: Path) -> dict[str, dict[str, str]] | None:
    """Return the SHA-256 of each image by part and name; None if the run does not record them, as in earlier versions."""
    try:
        split = json.loads((run / SPLIT).read_bytes())
        hashes = split["fingerprints"]
        return {
            part: {
                name: fingerprint for label, names in by_class.items() for name, fingerprint in zip(names, hashes[part][label], strict=True)
            }
            for part, by_class in split["parts"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
