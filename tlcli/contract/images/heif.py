"""Support for HEIC and HEIF, the format of many phones, through the optional package `pillow-heif`."""

from __future__ import annotations

import importlib

INSTALL = "pip install 'tlcli[heif]'"

_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"})


def register() -> bool:
    """Add HEIF to Pillow's decoders. Return False if the package is missing."""
    try:
        package = importlib.import_module("pillow_heif")
    except ImportError:
        return False
    package.register_heif_opener(thumbnails=False)
    return True


def is_heif(head: bytes) -> bool:
    """Check the first 12 or more bytes of a file for the `ftyp` box of a HEIF image (ISO/IEC 23008-12). AVIF has its own brands."""
    if head[4:8] != b"ftyp" or head[8:12] not in _BRANDS:
        return False
    return b"avif" not in head[12:64] and b"avis" not in head[12:64]


def missing(what: str = "a HEIC image") -> str:
    """Return the message for a user whose file needs the missing package."""
    return f"{what}, which needs the package pillow-heif: {INSTALL}, or convert it to JPEG"
