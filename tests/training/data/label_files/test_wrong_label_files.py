"""Label files that are wrong: each is read as intended or refused in one line with the file, the line and the way out."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.helpers.training.label_files import list_text, listing_of, put_images
from tlcli.contract.errors import DatasetError
from tlcli.training.data.load import load_dataset
from tlcli.training.settings.config import FinetuneConfig

HEADER = "path,label\n"
GOOD = HEADER + "cat/1.png,cat\ncat/2.png,cat\ndog/1.png,dog\ndog/2.png,dog\n"
CLASSES = {"cat": ["cat/1.png", "cat/2.png"], "dog": ["dog/1.png", "dog/2.png"]}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "is empty: expected a header such as path,label"),
        ("\n\n", "contains no lines: expected a header"),
        (HEADER, "has no rows: expected a line for each image below the header"),
        (
            "image,class\na.png,cat\n",
            "line 1: no column path and label; the columns are image, class: name those to read, such as --columns",
        ),
        ("path,class\ncat/1.png,cat\n", "line 1: no column label; the columns are path, class: name"),
        (
            "cat/1.png,cat\ncat/2.png,cat\n",
            "line 1: no header: the first line is cat/1.png, cat: add a first line with the names",
        ),
        ("path,label,label\ncat/1.png,cat,dog\n", "line 1: two columns are named 'label': rename one"),
        ("path,label,labels\ncat/1.png,cat,dog\n", "line 1: both a column label and a column labels: choose one with --columns"),
        (HEADER + "cat/1.png,cat,black\n", "line 2: 3 cells, but the header has 2: write a cell that contains ',' between double quotes"),
        (HEADER + "cat/1.png,cat\n\ncat/2.png\n", "line 4: 1 cell, but the header has 2"),
        (HEADER + '"cat/1.png,cat\ncat/2.png,cat\n', "line 2: a quoted cell is not closed: put cells with quotes"),
        (HEADER + '"cat/1.png"x,cat\n', r"line 2: .*expected after '\"': put cells with quotes between double quotes"),
        (HEADER + "cat/1.png,cat\n,cat\n", "line 3: no path"),
        (
            HEADER + "cat/1.png,cat\ncat/2.png,\ndog/1.png,  \n",
            "2 rows have no label \\(an empty cell or NaN\\): lines 3, 4: add the labels",
        ),
        (HEADER + "cat/1.png,cat\ncat/2.png,NaN\n", "1 row has no label \\(an empty cell or NaN\\): line 3"),
        (HEADER + "cat/1.png,\n", "no row has a label"),
        (
            HEADER + "cat/1.png,cat\ncat/3.png,cat\ncat/4.png,cat\n",
            r"2 of 3 images cannot be found: line 3: cat/3.png: no such file; line 4: cat/4.png: no such file: paths start from .*",
        ),
        (HEADER + "cat,cat\n", "1 of 1 images cannot be found: line 2: cat: is a folder"),
        (HEADER + "cat/1.png/x,cat\n", "1 of 1 images cannot be found: line 2: cat/1.png/x: not a directory"),
        (HEADER + f"{'x' * 300}.png,cat\n", "1 of 1 images cannot be found: line 2: x+.png: file name too long"),
        (HEADER + f"{'x/' * 3000}.png,cat\n", "line 2: a path of 6,004 characters: expected at most 4,096"),
        (
            HEADER + "/elsewhere/cat.png,cat\n",
            "1 of 1 images cannot be found: line 2: /elsewhere/cat.png: no such file: absolute paths must exist on this machine: make",
        ),
        (
            HEADER + "C:\\Users\\me\\cat.png,cat\n",
            r"1 of 1 images cannot be found: line 2: C:\\Users\\me\\cat.png: no such file: absolute Windows paths do not exist here",
        ),
        (
            HEADER + "ftp://host/cat.png,cat\n",
            "1 of 1 images cannot be found: line 2: ftp://host/cat.png: unknown kind of URL: expected a path or one of http://",
        ),
        (GOOD + "cat/1.png,dog\n", "lines 2 and 6: cat/1.png has the labels cat and dog: remove one of the rows"),
        (GOOD + "./cat//1.png,dog\n", "lines 2 and 6: cat/1.png has the labels cat and dog"),
        ("path,label,split\ncat/1.png,cat,train\ncat/1.png,cat,test\n", "lines 2 and 3: cat/1.png has two splits, train and test"),
        (
            "path,label,split\ncat/1.png,cat,train\ncat/2.png,cat,fold 3\n",
            "line 3: split 'fold 3': expected train, val or test, or nothing",
        ),
        ("path,label,split\ncat/1.png,cat,1\n", "line 2: split '1': expected train, val or test"),
        ("path,label,weight\ncat/1.png,cat,heavy\n", "line 2: weight 'heavy': expected a number from 1e-06 to 1,000,000, such as 0.5"),
        ("path,label,weight\ncat/1.png,cat,nan\n", "line 2: weight 'nan': expected a number"),
        ("path,label,weight\ncat/1.png,cat,0\n", "line 2: weight '0': .*; remove the row of an image that is not to count"),
        ("path,label,weight\ncat/1.png,cat,-1\n", "line 2: weight '-1': expected a number"),
        (
            "path,label,group,split\ncat/1.png,cat,g1,train\ncat/2.png,cat,g1,test\n",
            "lines 2 and 3: the group g1 is in two splits, train and test: put all its rows into one split",
        ),
        ("path,cat,dog\ncat/1.png,1,0\ncat/2.png,0.5,0\n", "line 3: cat is '0.5': expected 0 or 1, as in the columns of the other classes"),
        (HEADER + f"cat/1.png,{'x' * 501}\n", "line 2: a label of 501 characters: expected at most 500: choose the column with --columns"),
        (HEADER + "cat/1.png,c\0at\n", "line 2: a NUL character: expected text in UTF-8"),
        (HEADER + "x" * 2_000_000 + ",cat\n", "line 2: more than 1,048,576 characters: expected shorter lines"),
        (GOOD.encode("utf-16-le"), "line 1: a NUL character: expected text in UTF-8, or in UTF-16 with a byte order mark"),
        (b"\xff\xfe" + GOOD.encode("utf-16-le")[:-1], "not valid UTF-16: save it as UTF-8"),
        ((HEADER + "cat/1.png,cat\ncat/2.png,caf\u00e9\n").encode("latin-1"), "line 3: byte 0xe9 is not UTF-8: save the file as UTF-8"),
        (GOOD.encode() + b"dog/2.png,d\xc3", "line 6: byte 0xc3 is not UTF-8|line 6: ends in the middle of a character"),
        (b"PK\x03\x04" + bytes(100), "is a zip archive or a spreadsheet: expected text"),
        (b"\x1f\x8b" + bytes(100), "is a gzip archive: expected text"),
    ],
)
def test_a_wrong_csv_file_is_refused_with_its_line(tmp_path: Path, content: str | bytes, problem: str) -> None:
    put_images(tmp_path)
    refusal = refused(tmp_path, content, "labels.csv")
    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/labels\.csv: (?:{problem}).*", refusal), refusal


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (
            "l.jsonl",
            '{"path": "cat/1.png", "label": "cat"}\n{"path": \n',
            r"line 2: not valid JSON in column \d+ \(.*\): expected one object",
        ),
        ("l.jsonl", '["cat/1.png", "cat"]\n', r"line 1: \['cat/1.png', 'cat'\]: expected an object such as"),
        ("l.jsonl", "[\n{}\n]\n", "line 1: not valid JSON .*; name a file with one JSON array .json"),
        ("l.jsonl", '{"path": "cat/1.png", "label": "cat"}\n{"label": "cat"}\n', "line 2: no path"),
        ("l.jsonl", '{"path": 3, "label": "cat"}\n', "line 1: path 3: expected text"),
        ("l.jsonl", '{"path": "cat/1.png", "label": {"a": 1}}\n', r"line 1: label is \{'a': 1\}: expected a label as text or as a number"),
        ("l.jsonl", '{"path": "cat/1.png", "label": [["cat"]]}\n', r"line 1: label is \[\['cat'\]\]: expected a list of labels"),
        ("l.jsonl", '{"path": "cat/1.png", "label": null}\n', "no row has a label"),
        ("l.jsonl", "[" * 100_000, "line 1: not JSON that can be read|line 1: not valid JSON"),
        ("l.jsonl", '{"path": ' + "9" * 5000 + "}\n", "line 1: not JSON that can be read"),
        (
            "l.jsonl",
            '{"path": "\\ud800.png", "label": "a"}',
            r"1 of 1 images cannot be found: line 1: \\ud800.png: a character that is not valid",
        ),
        ("l.json", "", "is empty"),
        ("l.json", "[]", "has no rows"),
        ("l.json", "3", r"line 1: expected a JSON array, \[\.\.\.\], of objects"),
        ("l.json", '[\n{"path": "cat/1.png", "label": "cat"},\n{"path": "cat/2.png", "lab', "line 3: not valid JSON"),
        ("l.json", '[\n{"path": "cat/1.png", "label": "cat"}\n', "line 3: the array is not closed: the file is not complete"),
        ("l.json", '[{"path": "cat/1.png", "label": "cat"}\n{}]', "line 2: expected ',' or ']' after an item"),
        ("l.json", '[{"path": "cat/1.png", "label": "cat"}]\n{}', "line 2: expected nothing after the array: name a file with .* .jsonl"),
        ("l.json", '[\n"cat/1.png"]', "line 2: 'cat/1.png': expected an object"),
        ("l.json", '{"path": "cat/1.png"}', "an object of an unknown kind: expected an array of objects with path and label, Label"),
        ("l.json", '{"images": [], "annotations": [], "categories": []}', "is in COCO's format, which has boxes and no classes of images"),
        ("l.json", '{"path": ', r"line 1: not valid JSON \("),
        ("l.tsv", "path\tlabel\ncat/1.png\tcat\tx\n", "line 2: 3 cells, but the header has 2: write a cell that contains a tab"),
        ("l.parquet", "PAR1" + "x" * 100, r"not a Parquet file that can be read \(.*\): the file may be incomplete: write it again"),
    ],
)
def test_a_wrong_file_of_another_kind_is_refused_with_its_line(tmp_path: Path, name: str, content: str, problem: str) -> None:
    put_images(tmp_path)
    refusal = refused(tmp_path, content, name)
    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/{re.escape(name)}: (?:{problem}).*", refusal), refusal


def refused(folder: Path, content: str | bytes, name: str) -> str:
    with pytest.raises(DatasetError) as caught:
        list_text(folder, content, name)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 3000
    return message


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        "\ufeff" + GOOD,
        GOOD.encode("utf-16"),
        GOOD.encode("utf-32"),
        GOOD.replace("\n", "\r\n"),
        GOOD.replace("\n", "\r"),
        GOOD.replace("\n", "\n\n") + "\n , \n\n",
        GOOD.removesuffix("\n"),
        GOOD.replace(",", ";"),
        "sep=;\n" + GOOD.replace(",", ";"),
        GOOD.replace(",", "\t"),
        GOOD.replace(",", "|"),
        GOOD.replace(HEADER, "Path,LABEL\n"),
        GOOD.replace(HEADER, " path , label \n"),
        re.sub(r"([\w/.]+)", r'"\1"', GOOD),
        GOOD.replace("\n", ",\n"),
        GOOD.replace("cat\n", " cat \n"),
        GOOD.replace("cat/", "cat\\"),
        GOOD.replace("cat/", "./cat/"),
        GOOD.replace("cat/1.png", " cat/1.png "),
        "id" + GOOD.replace("\n", "\n7,").replace("path", ",path", 1).removesuffix("7,"),
        GOOD + "cat/1.png,cat\n",
    ],
)
def test_an_unusual_csv_file_is_read_as_intended(tmp_path: Path, content: str | bytes) -> None:
    put_images(tmp_path)
    listing = list_text(tmp_path, content)
    assert listing.train == CLASSES
    assert (listing.val, listing.test) == (None, None)


def test_absolute_paths_and_paths_outside_of_the_folder_are_read(tmp_path: Path) -> None:
    """The file is the user's own, so it may name images anywhere. Those below the file's folder keep their short names."""
    images, folder = put_images(tmp_path / "images"), tmp_path / "labels"
    folder.mkdir()
    content = f"{HEADER}{images}/cat/1.png,cat\n../images/cat/2.png,cat\nfile://{images}/dog/1.png,dog\n{folder}/own.png,dog\n"
    put_images(folder, "own.png")
    listing = list_text(folder, content)
    assert listing.train == {"cat": ["../images/cat/2.png", f"{images}/cat/1.png"], "dog": [f"{images}/dog/1.png", "own.png"]}
    assert all(listing.source.load(name).size == (8, 6) for names in listing.train.values() for name in names)


def test_links_to_images_are_read_and_broken_ones_are_missing(tmp_path: Path) -> None:
    put_images(tmp_path)
    os.symlink(tmp_path / "cat" / "1.png", tmp_path / "linked.png")
    assert list_text(tmp_path, HEADER + "linked.png,cat\n").train == {"cat": ["linked.png"]}
    (tmp_path / "cat" / "1.png").unlink()
    assert "line 2: linked.png: no such file" in refused(tmp_path, HEADER + "linked.png,cat\n", "labels.csv")


def test_an_image_that_is_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert "line 2: pipe.png: is a FIFO (named pipe)" in refused(tmp_path, HEADER + "pipe.png,cat\n", "labels.csv")


def test_names_in_the_other_unicode_form_are_found(tmp_path: Path) -> None:
    put_images(tmp_path, "cafe\u0301.png", "t\u00e9.png")
    assert list_text(tmp_path, HEADER + "caf\u00e9.png,a\nte\u0301.png,a\n").train == {"a": ["cafe\u0301.png", "t\u00e9.png"]}


def test_a_backslash_in_a_name_that_exists_is_kept(tmp_path: Path) -> None:
    put_images(tmp_path, "a\\b.png", "a/b.png")
    assert list_text(tmp_path, HEADER + "a\\b.png,cat\n").train == {"cat": ["a\\b.png"]}


def test_many_missing_images_are_counted_and_five_are_named(tmp_path: Path) -> None:
    refusal = refused(tmp_path, HEADER + "".join(f"a/{number}.png,cat\n" for number in range(1000)), "labels.csv")
    assert "1,000 of 1,000 images cannot be found: line 2: a/0.png" in refusal
    assert "line 6: a/4.png: no such file; and 995 more: paths start from" in refusal


def test_a_truncated_or_unsuitable_parquet_file_is_refused(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    put_images(tmp_path)
    path = tmp_path / "labels.parquet"
    parquet.write_table(pyarrow.table({"path": ["cat/1.png"] * 5000, "label": [f"{number}" for number in range(5000)]}), path)
    whole = path.read_bytes()
    for content in (whole[:-20], whole[: len(whole) // 2], whole[:100] + bytes(2000) + whole[2100:]):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match="not a Parquet file that can be read"):
            listing_of(path)
    parquet.write_table(pyarrow.table({"image": [{"bytes": b"x", "path": "1.png"}], "label": [1]}), path)
    with pytest.raises(DatasetError, match=r"the column 'image' holds the images themselves: expected their paths; .* --dataset hfds/NAME"):
        listing_of(path)
    parquet.write_table(pyarrow.table({"path": [1, 2], "label": ["a", "b"]}), path)
    with pytest.raises(DatasetError, match="row 1: path 1: expected text"):
        listing_of(path)
    parquet.write_table(pyarrow.table({"path": ["cat/1.png", None], "label": ["a", "b"]}), path)
    with pytest.raises(DatasetError, match="row 2: no path"):
        listing_of(path)


def test_a_file_that_is_missing_a_folder_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    def problem(name: str) -> str:
        with pytest.raises(DatasetError) as caught:
            load_dataset(FinetuneConfig(dataset=str(tmp_path / name)))
        return str(caught.value)

    (tmp_path / "labels.xlsx").write_bytes(b"PK")
    os.mkfifo(tmp_path / "pipe.csv")
    assert problem("nosuch.csv") == f"{tmp_path}/nosuch.csv: no such file: expected a label file"
    assert "is a file: expected a folder of images, or a label file (.csv, .tsv, .jsonl, .json or .parquet)" in problem("labels.xlsx")
    assert "pipe.csv: is not a regular file" in problem("pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "folder.csv: neither images nor class folders" in problem("folder.csv")


def test_a_file_with_one_class_is_refused_for_training(tmp_path: Path) -> None:
    put_images(tmp_path)
    (tmp_path / "labels.csv").write_text(HEADER + "cat/1.png,cat\ncat/2.png,cat\n")
    with pytest.raises(DatasetError, match=r"labels.csv: expected at least two classes, found 1 \(cat\)"):
        load_dataset(FinetuneConfig(dataset=str(tmp_path / "labels.csv")))


def test_columns_that_do_not_exist_or_contradict_each_other_are_refused(tmp_path: Path) -> None:
    put_images(tmp_path)

    def problem(**options: object) -> str:
        with pytest.raises(DatasetError) as caught:
            list_text(tmp_path, GOOD, **options)
        return str(caught.value)

    assert "line 1: no column 'file' (--columns path=...): choose from path, label" in problem(columns={"path": "file"})
    assert "line 1: no column 'patient' (--columns group=...): choose from path, label" in problem(group_column="patient")
    assert "the column 'label' is chosen for two purposes" in problem(columns={"label": "label", "group": "label"})
    assert "--group-column a and --columns group=b name two columns" in problem(columns={"group": "b"}, group_column="a")
    content = "path,label,g\ncat/1.png,cat,\ndog/1.png,dog,\n"
    with pytest.raises(DatasetError, match="no row has a group in 'g': choose another column of groups"):
        list_text(tmp_path, content, group_column="g")


def test_annotations_that_disagree_are_refused_with_the_task(tmp_path: Path) -> None:
    put_images(tmp_path)

    def task(number: int, *choices: str, name: str = "choice") -> dict[str, object]:
        return {
            "id": number,
            "data": {"image": "cat/1.png"},
            "annotations": [{"result": [{"type": "choices", "from_name": name, "value": {"choices": [choice]}}]} for choice in choices],
        }

    assert "line 1: task 7: its annotations disagree (cat and dog): resolve it" in refused(
        tmp_path, json.dumps([task(7, "cat", "dog")]), "l.json"
    )
    both = task(8, "cat")
    both["annotations"][0]["result"] += task(8, "good", name="quality")["annotations"][0]["result"]  # type: ignore[index]
    assert "task 8: answers to several questions (choice, quality): choose one with --columns label=NAME" in refused(
        tmp_path, json.dumps([both]), "l.json"
    )
    assert list_text(tmp_path, json.dumps([both]), "l.json", columns={"label": "quality"}).train == {"good": ["cat/1.png"]}
