"""Items of a JSON array, read one at a time with their lines, so that a large export does not have to fit into memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tlcli.training.data.label_files.label_row import MAX_LINE, LabelFile
from tlcli.training.data.label_files.text_lines import read_chunks

_SPACE = re.compile(r"[ \t\r\n]*")

_DECODER = json.JSONDecoder()


def read_items(file: LabelFile) -> Iterator[tuple[int, Any]]:
    """Yield the items of a JSON array with the lines in which they start.

    Raises:
        DatasetError: the file is not a JSON array, is not complete, or an item is longer than 1 MiB.
    """
    text = _Window(file)
    if text.peek() != "[":
        raise text.error('expected a JSON array, [...], of objects such as {"path": "cat.jpg", "label": "cat"}')
    text.skip()
    if text.peek() == "]":
        text.skip()
    else:
        while True:
            line = text.line_of_next()
            yield line, text.decode()
            separator = text.peek()
            if separator not in (",", "]"):
                raise text.error("expected ',' or ']' after an item" if separator else "the array is not closed: the file is not complete")
            text.skip()
            if separator == "]":
                break
    if text.peek():
        raise text.error("expected nothing after the array: name a file with an object in each line .jsonl")


def first_character(file: LabelFile) -> str:
    """Return the first character that is not a space; empty for a file without one."""
    return _Window(file).peek()


class _Window:
    """Part of a file's text from the current position on, with the number of the current line."""

    def __init__(self, file: LabelFile) -> None:
        self._file = file
        self._chunks = read_chunks(file)
        self._text = ""
        self._position = 0
        self._line = 1

    def peek(self) -> str:
        """Move to the next character that is not a space and return it; empty at the end."""
        while True:
            matched = _SPACE.match(self._text, self._position)
            assert matched is not None, "it matches nothing, too"
            self._advance(matched.end())
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._read():
                return ""

    def skip(self) -> None:
        """Move over the next character."""
        self._advance(self._position + 1)

    def line_of_next(self) -> int:
        """Return the line of the next character that is not a space."""
        self.peek()
        return self._line

    def decode(self) -> Any:
        """Decode the next value and move behind it.

        Raises:
            DatasetError: it is not JSON, not complete, or too long.
        """
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                length = len(self._text) - self._position
                if length <= MAX_LINE and self._read():  # the value may continue in the next chunk
                    continue
                line = self._line + self._text.count("\n", self._position, error.pos)
                problem = f"an item of more than {MAX_LINE:,} characters, or " if length > MAX_LINE else ""
                raise self._file.error(f"{problem}not valid JSON ({error.msg})", line) from error
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, or a thousand nested lists
                raise self._file.error("not JSON that can be read", self._line) from error
            if end == len(self._text) and self._read():  # a number may continue in the next chunk
                continue
            self._advance(end)
            return value

    def error(self, problem: str) -> Exception:
        return self._file.error(f"{problem}", self._line)

    def _advance(self, position: int) -> None:
        self._line += self._text.count("\n", self._position, position)
        self._position = position

    def _read(self) -> bool:
        """Add a chunk and drop what has been read. Return False at the end of the file."""
        chunk = next(self._chunks, None)
        if chunk is None:
            return False
        self._text = self._text[self._position :] + chunk
        self._position = 0
        return True
