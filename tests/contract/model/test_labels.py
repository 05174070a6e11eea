"""Label files of common formats: their labels, or one line that says what is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tlcli.contract.errors import SettingsError
from tlcli.contract.model.labels import MAX_LABEL_FILE_BYTES, LabelIndex, read_labels

CAFE = ["café", "hot dog", "日本"]
LINES = "café\nhot dog\n日本"

READ = {
    "no newline at the end": LINES.encode(),
    "a newline at the end": f"{LINES}\n".encode(),
    "several at the end": f"{LINES}\n\n \n".encode(),
    "CRLF": LINES.replace("\n", "\r\n").encode() + b"\r\n",
    "CR alone": LINES.replace("\n", "\r").encode(),
    "UTF-8 with a mark": LINES.encode("utf-8-sig"),
    "UTF-16, little-endian": b"\xff\xfe" + LINES.encode("utf-16-le"),
    "UTF-16, big-endian": b"\xfe\xff" + LINES.encode("utf-16-be"),
    "UTF-32": LINES.encode("utf-32"),
    "spaces around": "  café\t\nhot dog  \n日本 ".encode(),
    "ids before the labels": "0 café\n1 hot dog\n2 日本\n".encode(),
    "ids in another order": "2: 日本\n0: café\n1: hot dog".encode(),
    "WordNet ids": "n01440764 café\nn01443537 hot dog\nn01484850\t日本".encode(),
    "JSON list": json.dumps(CAFE).encode(),
    "JSON list with a mark": json.dumps(CAFE).encode("utf-8-sig"),
    "JSON map from ids": json.dumps({"2": "日本", "0": "café", "1": "hot dog"}).encode(),
    "JSON map to ids, as Keras' class_indices": json.dumps({"hot dog": 1, "café": 0, "日本": 2}).encode(),
    "Keras' ImageNet index": json.dumps({str(i): [f"n0000000{i}", label] for i, label in enumerate(CAFE)}).encode(),
    "Hugging Face's config": json.dumps({"model_type": "resnet", "id2label": dict(enumerate(CAFE)), "label2id": {}}).encode(),
    "Python's dict": "{0: 'café',\n 1: 'hot dog',\n 2: '日本',}\n".encode(),
}


@pytest.mark.parametrize("data", READ.values(), ids=READ)
def test_labels_are_read_as_people_have_them(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(data)
    assert read_labels(path) == CAFE


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("3 dogs\n7 dogs", ["3 dogs", "7 dogs"]),
        ("0 euro\n1 euro", ["0 euro", "1 euro"]),
        ("0\n1\n2", ["0", "1", "2"]),
        ("[UNK]\ncat", ["[UNK]", "cat"]),
        ("crane\ncrane", ["crane", "crane"]),
        ("tench, Tinca tinca\ngoldfish", ["tench, Tinca tinca", "goldfish"]),
        ("line\u2028separator\nform feed", ["line\u2028separator", "form feed"]),
    ],
)
def test_lines_that_only_resemble_something_else_stay_as_they_are(lines: str, expected: list[str], tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text(lines, encoding="utf-8")
    assert read_labels(path) == expected


REFUSED = {
    "an empty line between": (b"cat\n\ndog\n", "line 2 is empty, and lines with labels follow"),
    "an empty line at the start": (b"\ncat\n", "line 1 is empty"),
    "Latin-1": ("dog\ncafé".encode("latin-1"), r"line 2: byte 7 \(0xe9\) is not UTF-8: save it as UTF-8 .*iconv"),
    "UTF-16 without a mark": ("cat\ndog".encode("utf-16-le"), "line 1: a NUL character"),
    "UTF-16 cut short": (b"\xff\xfea", "is not UTF-16"),
    "NUL": (b"cat\nd\0g", "line 2: a NUL character"),
    "a control character": (b"cat\nd\x07g", r"class 1: 'd\\x07g' has a control character"),
    "a mark in the middle": ("cat\n\ufeffdog".encode(), "class 1: .* byte order mark"),
    "nothing": (b"", "contains no labels"),
    "only newlines": (b"\n\n", "contains no labels"),
    "an empty JSON list": (b"[]", "contains no labels"),
    "broken JSON": (b'["cat", "dog"', "cannot be read as JSON"),
    "numbers": (b"[1, 2]", "class 0: 1 is not a string"),
    "a list in a list": (b'[["cat"], ["dog"]]', r"class 0: \['cat'\] is not a string"),
    "half a surrogate pair": (b'["\\ud800"]', "half of a surrogate pair"),
    "an empty label in JSON": (b'["cat", " "]', "class 1: '' is empty"),
    "an id that is missing": (b'{"0": "cat", "2": "dog"}', "no label for class 1 of 2"),
    "ids from 1": (b'{"1": "cat", "2": "dog"}', "no label for class 0 of 2"),
    "a repeated id": (b'{"0": "cat", "0": "dog"}', "the key '0' is repeated"),
    "two labels of one id": (b'{"cat": 0, "dog": 0}', "no label for class 1 of 2"),
    "a map without ids": (b'{"cat": "kitty"}', "'cat': 'kitty': neither key nor value is a class id"),
    "brackets without an end": (b'["' + b"[" * 100_000, "cannot be read as JSON"),
    "brackets, as JSON": (b"[" * 100_000 + b"]" * 100_000, "cannot be read as JSON|is not a string"),
    "a number of 5,000 digits": (b'{"cat": ' + b"1" * 5000 + b"}", "cannot be read as JSON"),
    "too much": (b"a" * (MAX_LABEL_FILE_BYTES + 1), "more than 4,194,304 bytes"),
}


@pytest.mark.parametrize(("data", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_list_of_labels_is_refused_in_one_line(data: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(data)
    with pytest.raises(SettingsError, match=expected) as caught:
        read_labels(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 500


def test_what_is_no_file_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlcli.contract.files.atomic_file._PIPE_WAIT_S", 0.1)
    os.mkfifo(tmp_path / "pipe")
    for name, expected in (
        (".", "Is a directory"),
        ("none.txt", "No such file"),
        ("pipe", "contains no labels"),
        ("/dev/zero", "neither a file nor"),
    ):
        with pytest.raises(SettingsError, match=expected):
            read_labels(tmp_path / name)
    writer = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        with pytest.raises(SettingsError, match=r"no data in the pipe for 0\.1 s"):
            read_labels(tmp_path / "pipe")
        os.write(writer, b"cat\ndog\n")
        with pytest.raises(SettingsError, match="no data in the pipe"):
            read_labels(tmp_path / "pipe")  # the writer has not closed the pipe
    finally:
        os.close(writer)


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"cat\ndog\n")
    os.close(writer)
    try:
        assert read_labels(Path(f"/proc/self/fd/{reader}")) == ["cat", "dog"]
    finally:
        os.close(reader)


def test_composed_and_decomposed_letters_name_the_same_class() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert LabelIndex(["tea", composed]).find(decomposed) == [1]
    assert LabelIndex(["tea", decomposed]).find(composed) == [1]
    assert LabelIndex([composed, decomposed]).find(decomposed) == [1], "to the letter first"
    assert LabelIndex(["crane", "tea", "crane"]).find("crane") == [0, 2]
    assert LabelIndex(["crane", "tea", "crane"]).repeated() == {"crane": [0, 2]}
    assert LabelIndex(["tea"]).find("coffee") == []
