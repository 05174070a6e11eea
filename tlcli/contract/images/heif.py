"""HEIC and HEIF, as phones write them, where the optional package `pillow-heif` is installed."""

from __future__ import annotations

import importlib

INSTALL = "pip install 'tlcli[heif]'"

_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"})


def register() -> bool:
    """Add HEIF to Pillow's decoders. Return False where the package is missing."""
    try:
        package = importlib.import_module("pillow_heif")
    except ImportError:
        return False
    package.register_heif_opener(thumbnails=False)
    return True


def is_heif(head: bytes) -> bool:
    """Check the first 12 bytes of a file, or more, for the `ftyp` box of a HEIF image (ISO/IEC 23008-12). AVIF has brands of its own."""
    if head[4:8] != b"ftyp" or head[8:12] not in _BRANDS:
        return False
    return b"avif" not in head[12:64] and b"avis" not in head[12:64]


def missing(what: str = "a HEIC image") -> str:
    """Return what to tell a user whose file needs the package."""
    return f"{what}, which needs the package pillow-heif: {INSTALL}, or convert it to JPEG"
