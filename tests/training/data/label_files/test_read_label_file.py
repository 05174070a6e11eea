"""Label files of all kinds, and the exports of common tools."""

from __future__ import annotations

import csv
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.training.label_files import list_text, listing_of, put_images
from tlcli.contract.errors import DatasetError
from tlcli.training.data.label_files.label_row import LabelFile
from tlcli.training.data.label_files.read_label_file import is_label_file, open_label_file, read_rows

ROWS: list[dict[str, Any]] = [
    {"path": "cat/1.png", "label": "cat", "split": "train", "group": "a", "weight": 2.0},
    {"path": "cat/2.png", "label": "cat", "split": "Valid", "group": "b", "weight": 1.0},
    {"path": "dog/1.png", "label": "dog, big", "split": "TRAIN", "group": "c", "weight": 0.5},
    {"path": "dog/2.png", "label": "dog, big", "split": "test", "group": "d", "weight": 1.0},
]


def write_csv(path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(ROWS)


def write_json_lines(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def write_json(path: Path) -> None:
    path.write_text(json.dumps(ROWS, indent=1))


def write_parquet(path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "labels.csv": write_csv,
    "labels.TSV": write_csv,
    "labels.tsv": write_csv,
    "labels.jsonl": write_json_lines,
    "labels.ndjson": write_json_lines,
    "labels.json": write_json,
    "labels.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    WRITERS[name](put_images(tmp_path) / name)
    assert is_label_file(str(tmp_path / name))
    listing = listing_of(tmp_path / name)
    assert listing.classes == ("cat", "dog, big")
    assert listing.train == {"cat": ["cat/1.png"], "dog, big": ["dog/1.png"]}
    assert listing.val == {"cat": ["cat/2.png"]}
    assert listing.test == {"dog, big": ["dog/2.png"]}
    assert listing.groups == {"cat/1.png": "a", "cat/2.png": "b", "dog/1.png": "c", "dog/2.png": "d"}
    assert listing.weights == {"cat/1.png": 2.0, "cat/2.png": 1.0, "dog/1.png": 0.5, "dog/2.png": 1.0}


def test_other_columns_are_read_by_their_names(tmp_path: Path) -> None:
    put_images(tmp_path)
    content = "file,class,label,fold,Patient\ncat/1.png,cat,x,train,7\ncat/2.png,cat,x,,8\ndog/1.png,dog,x,test,9\n"
    listing = list_text(tmp_path, content, columns={"path": "file", "label": "class", "split": "fold"}, group_column="patient")
    assert listing.train == {"cat": ["cat/1.png", "cat/2.png"]}
    assert listing.test == {"dog": ["dog/1.png"]}
    assert listing.groups == {"cat/1.png": "7", "cat/2.png": "8", "dog/1.png": "9"}


def test_labels_of_several_values_are_parsed_to_the_end(tmp_path: Path) -> None:
    """Training refuses them, but the rows are read."""

    def labels(name: str, content: str) -> list[tuple[str, ...]]:
        (tmp_path / name).write_text(content)
        return [row.labels for row in read_rows(open_label_file(str(tmp_path / name)), {}).rows]

    assert labels("l.csv", "path,labels\na,x|y| z |x\nb,\nc,x\n") == [("x", "y", "z"), (), ("x",)]
    assert labels("l.csv", "path,label\na,x|y\n") == [("x|y",)], "a label may hold the separator"
    assert labels("l.jsonl", '{"path": "a", "labels": ["x", "y"]}\n{"path": "b", "labels": []}\n') == [("x", "y"), ()]
    assert labels("l.csv", "name,x,y,z\na,1,0,1\nb,0,0,0\nc,0,1.0,0\n") == [("x", "z"), (), ("y",)]


def test_later_objects_may_have_a_split_that_the_first_one_lacks(tmp_path: Path) -> None:
    put_images(tmp_path)
    rows = [{"path": "cat/1.png", "label": "cat"}, {"path": "cat/2.png", "label": "cat", "split": "test", "group": "g", "weight": 2}]
    listing = list_text(tmp_path, "\n".join(map(json.dumps, rows)), "l.jsonl")
    assert listing.test == {"cat": ["cat/2.png"]}
    assert listing.groups == {"cat/1.png": "cat/1.png", "cat/2.png": "g"}
    assert listing.weights == {"cat/1.png": 1.0, "cat/2.png": 2.0}


def test_values_of_other_types_become_text(tmp_path: Path) -> None:
    put_images(tmp_path)
    rows = [{"path": name, "label": value} for name, value in (("cat/1.png", 3), ("cat/2.png", 12.0), ("dog/1.png", "3"), ("dog/2.png", 2))]
    listing = list_text(tmp_path, "\n".join(map(json.dumps, rows)), "l.jsonl")
    assert listing.train == {"2": ["dog/2.png"], "3": ["cat/1.png", "dog/1.png"], "12": ["cat/2.png"]}
    assert listing.classes == ("2", "3", "12"), "sorted by number"
    assert list_text(tmp_path, '{"path": "cat/1.png", "label": true}', "l.jsonl").classes == ("true",)


def test_whole_numbers_of_pandas_are_one_class(tmp_path: Path) -> None:
    put_images(tmp_path)
    assert list_text(tmp_path, "path,label\ncat/1.png,1\ncat/2.png,1.0\ndog/1.png,2\n").classes == ("1", "2")
    assert list_text(tmp_path, "path,label\ncat/1.png,007\ncat/2.png,7.0\n").classes == ("007", "7.0"), "leading zeros are kept"


def test_one_hot_csv_files_of_kaggle_name_images_without_folder_and_suffix(tmp_path: Path) -> None:
    put_images(tmp_path, "images/Train_0.png", "images/Train_1.png", "images/Train_2.png")
    content = "image_id,healthy,rust,scab\nTrain_0,1,0,0\nTrain_1,0,1,0\nTrain_2,0,0,1.0\n"
    listing = list_text(tmp_path, content)
    assert listing.train == {name: [f"images/Train_{number}.png"] for number, name in enumerate(("healthy", "rust", "scab"))}
    assert listing.notes == (
        f"3 images are named without a folder and taken from below {tmp_path}/, such as Train_0 from images/Train_0.png",
    )
    put_images(tmp_path, "other/Train_1.png")
    with pytest.raises(DatasetError, match=r"line 3: Train_1: several images have this name, such as images/Train_1.png and other/Train_1"):
        list_text(tmp_path, content)


def test_roboflow_classes_csv(tmp_path: Path) -> None:
    put_images(tmp_path, "a_jpg.rf.123.png", "b_jpg.rf.456.png")
    listing = list_text(tmp_path, "filename, Hot Dog, pizza\na_jpg.rf.123.png, 1, 0\nb_jpg.rf.456.png, 0, 1\n", "_classes.csv")
    assert listing.train == {"Hot Dog": ["a_jpg.rf.123.png"], "pizza": ["b_jpg.rf.456.png"]}


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_hugging_face_metadata(tmp_path: Path, name: str) -> None:
    put_images(tmp_path)
    rows = [{"file_name": path, "label": label, "text": "x"} for path, label in (("cat/1.png", 0), ("dog/1.png", 1))]
    text = "file_name,label,text\ncat/1.png,0,x\ndog/1.png,1,x\n" if name.endswith("csv") else "\n".join(map(json.dumps, rows))
    assert list_text(tmp_path, text, name).train == {"0": ["cat/1.png"], "1": ["dog/1.png"]}


def task(number: int, image: str, *choices: str, **more: Any) -> dict[str, Any]:
    result = [{"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": list(choices)}}]
    return {"id": number, "data": {"image": image}, "annotations": [{"was_cancelled": False, "result": result}] if choices else [], **more}


def test_label_studio_json(tmp_path: Path) -> None:
    """Uploaded images have a hash before their names and local ones a path below the storage; tasks without annotations are left out."""
    put_images(tmp_path, "upload/cat 1.png", "dogs/2.png", "3.png", "4.png")
    tasks = [
        task(1, "/data/upload/5/0a1b2c3d-cat%201.png", "cat"),
        task(2, "/data/local-files/?d=dogs/2.png", "dog"),
        task(3, "3.png"),
        task(4, "4.png", "cat"),
    ]
    tasks[3]["annotations"] += [{"was_cancelled": True, "result": tasks[1]["annotations"][0]["result"]}, tasks[3]["annotations"][0]]
    listing = list_text(tmp_path, json.dumps(tasks, indent=2), "export.json")
    assert listing.train == {"cat": ["4.png", "upload/cat 1.png"], "dog": ["dogs/2.png"]}
    assert [(entry.name, entry.reason) for entry in listing.skipped] == [("3.png", "no label yet")]
    several = task(1, "3.png", "cat", "dog")
    assert list_text(tmp_path, json.dumps([several]), "export.json").labels == {"3.png": ("cat", "dog")}


def test_label_studio_flat_exports(tmp_path: Path) -> None:
    put_images(tmp_path)
    header = "annotation_id,annotator,choice,created_at,id,image,lead_time,updated_at\n"
    content = header + "1,1,cat,x,1,cat/1.png,2.5,x\n2,1,dog,x,2,dog/1.png,2.5,x\n"
    expected = {"cat": ["cat/1.png"], "dog": ["dog/1.png"]}
    assert list_text(tmp_path, content).train == expected
    rows = [{"image": f"{label}/1.png", "id": 1, "choice": label, "annotator": 1, "annotation_id": 2} for label in ("cat", "dog")]
    assert list_text(tmp_path, json.dumps(rows), "min.json").train == expected
    several = header + '1,1,"{""choices"":[""cat"",""dog""]}",x,1,cat/1.png,2.5,x\n'
    assert list_text(tmp_path, several).labels == {"cat/1.png": ("cat", "dog")}


def datumaro(*items: dict[str, Any]) -> str:
    labels = [{"name": name, "parent": "", "attributes": []} for name in ("cat", "dog")]
    return json.dumps({"info": {}, "categories": {"label": {"labels": labels}, "points": {"items": []}}, "items": items})


def tag(label_id: int) -> dict[str, Any]:
    return {"id": 0, "type": "label", "attributes": {}, "group": 0, "label_id": label_id}


def test_cvat_datumaro_json(tmp_path: Path) -> None:
    """CVAT puts the images beside the folder of the annotations, if it exports them; an export without them names no suffix."""
    put_images(tmp_path, "images/default/1.png", "images/default/a/2.png", "images/default/3.png")
    (tmp_path / "annotations").mkdir()
    content = datumaro(
        {"id": "1", "annotations": [tag(0)], "image": {"path": "1.png", "size": [6, 8]}},
        {"id": "a/2", "annotations": [{"type": "bbox", "label_id": 0, "bbox": [0, 0, 1, 1]}, tag(1)]},
        {"id": "3", "annotations": [], "image": {"path": "3.png"}},
    )
    listing = list_text(tmp_path / "annotations", content, "default.json")
    assert listing.train == {"cat": ["../images/default/1.png"], "dog": ["../images/default/a/2.png"]}
    assert [entry.name for entry in listing.skipped] == ["3.png"]
    with pytest.raises(DatasetError, match=r"item 1: label_id 7: expected 0 to 1, for the 2 labels"):
        list_text(tmp_path / "annotations", datumaro({"id": "1", "annotations": [tag(7)]}), "default.json")
    boxes = datumaro({"id": "1", "annotations": [{"type": "bbox", "label_id": 0}]})
    with pytest.raises(DatasetError, match=r"none of its items has a tag \(an annotation of the type label\)"):
        list_text(tmp_path / "annotations", boxes, "default.json")


def test_items_of_an_array_are_read_across_chunks_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "l.json"
    rows = [{"path": f"{number}.png", "label": "x" * 400, "text": 'a "quoted" ] \\ é' * 30} for number in range(4000)]
    path.write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n", encoding="utf-8")
    assert path.stat().st_size > 3 * 1024 * 1024
    read = list(read_rows(LabelFile(path, "l.json", ""), {}).rows)
    assert [(row.line, row.path) for row in read] == [(number + 2, f"{number}.png") for number in range(4000)]


def test_an_item_of_more_than_a_mebibyte_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"line 1: an item of more than 1,048,576 characters"):
        list_text(tmp_path, '[{"path": "' + "x" * 5_000_000, "l.json")


@pytest.mark.parametrize("name", ["labels.csv", "labels.jsonl", "labels.json", "labels.parquet"])
def test_fifty_thousand_rows_take_a_twentieth_of_a_minute_and_of_two_gigabytes(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`benchmarks/label_files.py` measures a million rows; here, the seconds are those of the processor."""
    monkeypatch.setitem(globals(), "ROWS", [{"path": f"images/{number}.png", "label": f"{number % 100}"} for number in range(50_000)])
    WRITERS[name](tmp_path / name)
    monkeypatch.setattr("tlcli.training.data.label_files.image_paths.ImagePaths._look", lambda self, name: None)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    listing = listing_of(tmp_path / name)
    assert time.process_time() - began < 60 / 20
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 2e9 / 20
    assert sum(map(len, listing.train.values())) == 50_000
