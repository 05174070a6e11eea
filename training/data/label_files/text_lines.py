"""Lines of a text file with bounded length. Encodings, NUL characters and binary files are checked."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from tlcli.contract.files.text_file import encoding_of
from tlcli.training.data.label_files.label_row import MAX_LINE, LabelFile

_BINARY = {
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"\x1f\x8b": "a gzip archive",
    b"PAR1": "a Parquet file",
    b"\xd0\xcf\x11\xe0": "a spreadsheet",
    b"SQLite format 3": "a database",
}
"""First bytes of files that are given the wrong suffix, with their kind."""

_CHUNK = 1024 * 1024


def read_lines(file: LabelFile) -> Iterator[str]:
    """Yield the lines of a file with their line ends. UTF-8 is expected, or UTF-16 or UTF-32 with a byte order mark.

    Raises:
        DatasetError: the file cannot be read, is binary or in another encoding, or a line is longer than 1 MiB.
    """
    encoding = _encoding(file)
    number = 0
    try:
        with file.path.open(encoding=encoding, newline="") as stream:
            while line := stream.readline(MAX_LINE):
                number += 1
                if "\0" in line:
                    raise file.error("a NUL character: expected text in UTF-8, or in UTF-16 with a byte order mark", number)
                if len(line) >= MAX_LINE:
                    raise file.error(f"more than {MAX_LINE:,} characters: expected shorter lines", number)
                yield line
    except UnicodeDecodeError as error:
        raise _undecodable(file, encoding) from error
    except OSError as error:
        raise file.error(f"cannot be read: {error.strerror or error}") from error


def read_chunks(file: LabelFile) -> Iterator[str]:
    """Yield the text of a file in chunks of up to 1 MiB. The checks are those of `read_lines`, without the length of lines.

    Raises:
        DatasetError: see `read_lines`.
    """
    encoding = _encoding(file)
    try:
        with file.path.open(encoding=encoding, newline="") as stream:
            while chunk := stream.read(_CHUNK):
                if "\0" in chunk:
                    raise file.error("contains a NUL character: expected text in UTF-8, or in UTF-16 with a byte order mark")
                yield chunk
    except UnicodeDecodeError as error:
        raise _undecodable(file, encoding) from error
    except OSError as error:
        raise file.error(f"cannot be read: {error.strerror or error}") from error


def _encoding(file: LabelFile) -> str:
    try:
        with file.path.open("rb") as stream:
            head = stream.read(64)
    except OSError as error:
        raise file.error(f"cannot be read: {error.strerror or error}") from error
    for magic, kind in _BINARY.items():
        if head.startswith(magic):
            raise file.error(f"is {kind}: expected text: give the file its right suffix, unpack it, or export it as CSV in UTF-8")
    mark, encoding = encoding_of(head)
    return {"utf-8": "utf-8-sig", "utf-16-le": "utf-16", "utf-16-be": "utf-16"}.get(encoding, "utf-32") if mark else encoding


def _undecodable(file: LabelFile, encoding: str) -> Exception:
    """Return the error for the first line that cannot be decoded, found in a second pass over the file."""
    if encoding not in ("utf-8", "utf-8-sig"):
        return file.error(f"not valid {encoding.upper()}: save it as UTF-8")
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    with file.path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                byte = error.object[error.start]
                break
            line += chunk.count(b"\n")
        else:
            return file.error("ends in the middle of a character: the file is not complete", line)
    return file.error(
        f"byte 0x{byte:02x} is not UTF-8: save the file as UTF-8 (for example: iconv -f LATIN1 -t UTF-8 {file.path.name} > utf8.csv)", line
    )
