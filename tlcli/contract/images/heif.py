"""Support for HEIC and HEIF, the image format of many phones, through the optional package `pillow-heif`."""

from __future__ import annotations

import importlib

INSTALL = "pip install 'tlcli[heif]'"

_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"})


def register() -> bool:
    """Register HEIF with Pillow's decoders. Return False if `pillow-heif` is not installed."""
    try:
        package = importlib.import_module("pillow_heif")
    except ImportError:
        return False
    package.register_heif_opener(thumbnails=False)
    return True


def is_heif(head: bytes) -> bool:
    """Return True if the first bytes of a file, at least 12, contain the `ftyp` box of a HEIF image (ISO/IEC 23008-12).

    AVIF files, which have their own brands, do not match.
    """
    if head[4:8] != b"ftyp" or head[8:12] not in _BRANDS:
        return False
    return b"avif" not in head[12:64] and b"avis" not in head[12:64]


def missing(what: str = "a HEIC image") -> str:
    """Return the error message for a file that requires the package, which is not installed."""
    return f"{what}, which needs the package pillow-heif: {INSTALL}, or convert it to JPEG"
