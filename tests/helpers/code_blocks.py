"""Code blocks of Markdown documents."""

from __future__ import annotations

import re
from pathlib import Path

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def code_blocks(path: Path) -> list[tuple[str, str]]:
    """Return the language and the text of each block, in order."""
    return [(match[1], match[2]) for match in _BLOCK.finditer(path.read_text(encoding="utf-8"))]
