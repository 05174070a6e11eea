"""Reader for text files written by people. Files are decoded according to their byte order mark, or as UTF-8 without one."""

from __future__ import annotations

import codecs
from pathlib import Path

from tlcli.contract.errors import SettingsError
from tlcli.contract.files.atomic_file import read_bounded

_MARKS = (  # UTF-32 before UTF-16: its little-endian mark begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def read_text(path: Path, max_bytes: int) -> str:
    """Read a text file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark. The mark is removed.

    Raises:
        SettingsError: the file cannot be read (see `atomic_file.read_bounded`), has more than `max_bytes`, uses another encoding, or
            contains NUL characters.
    """
    try:
        data = read_bounded(path, max_bytes)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror or error}: expected a text file") from error
    if len(data) > max_bytes:
        raise SettingsError(f"{path}: more than {max_bytes:,} bytes: expected a smaller text file")
    return decode_text(data, str(path))


def decode_text(data: bytes, where: str) -> str:
    """Decode the contents of a text file. For the supported encodings, see `read_text`.

    Raises:
        SettingsError: the data use another encoding or contain NUL characters; the message begins with `where`.
    """
    mark, encoding = encoding_of(data)
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.upper().removesuffix("-LE").removesuffix("-BE")
        position = len(mark) + error.start
        line = data[:position].count(b"\n") + 1
        advice = f"save it as UTF-8 (for example: iconv -f LATIN1 -t UTF-8 {where})" if encoding == "utf-8" else "save it as UTF-8"
        raise SettingsError(f"{where}: line {line}: byte {position} (0x{data[position]:02x}) is not {name}: {advice}") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise SettingsError(f"{where}: line {line}: a NUL character: expected text in UTF-8, or in UTF-16 with a byte order mark")
    return text


def encoding_of(head: bytes) -> tuple[bytes, str]:
    """Return the byte order mark at the beginning of a file and the encoding that it stands for; UTF-8 and no bytes without a mark."""
    return next(((mark, encoding) for mark, encoding in _MARKS if head.startswith(mark)), (b"", "utf-8"))
