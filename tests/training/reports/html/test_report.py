"""`report.html` shows what the run's files hold, loads nothing from outside, and escapes every name."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from tests.helpers.training.made_run import default_epochs, make_run
from tlcli.contract.errors import NotFoundError, SettingsError
from tlcli.training.metrics.scores import EpochRow
from tlcli.training.reports.datasheet import Copy, DataSheet, Overlap, Sizes, Spread, Unread, write_data_sheet
from tlcli.training.reports.html.charts import line_chart
from tlcli.training.reports.html.report import write_report
from tlcli.training.runs.summary import Epoch, read_summary

NASTY = ("<script>alert(1)</script>", '"><img src=http://x.test/a onerror=b>', "a&amp;b 'c'", "猫 {{x}} ${y}")
VOID = ("meta", "img", "br")


class Page(HTMLParser):
    """A parsed page: its elements in order, its text, and its tables as rows of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.tables: list[list[list[str]]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data + "\n"
        if "td" in self._open or "th" in self._open:
            self.tables[-1][-1][-1] += data

    def table(self, *heads: str) -> list[list[str]]:
        """Return the rows of the first table with these column heads."""
        for table in self.tables:
            for number, row in enumerate(table):
                if row == list(heads):
                    return table[number + 1 :]
        raise AssertionError(f"no table {heads}")


def page(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def sheet(labels: tuple[str, ...]) -> DataSheet:
    return DataSheet(
        dataset="pets",
        fingerprint="cd" * 32,
        images={"train": {label: 40 + n for n, label in enumerate(labels)}, "val": dict.fromkeys(labels, 20)},
        sizes=Sizes(
            measured=99, width=Spread(smallest=31, median=640, largest=4032), height=Spread(smallest=17, median=480.5, largest=3024)
        ),
        imbalance=1.25,
        duplicates=((Copy(part="train", name="t/1.jpg", label=labels[0]), Copy(part="val", name="v/2.jpg", label=labels[1])),),
        duplicate_contents=1,
        contradictions=1,
        overlaps=(Overlap(of="val", also_in="train", images=7),),
        left_out=(Unread(name="t/broken.jpg", reason="the image is empty"),),
        warnings=("7 of the 60 images of the validation part are in the training part too", f"few of {labels[0]}"),
    )


def test_the_page_loads_nothing_from_outside(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", NASTY)
    write_data_sheet(run / "data_sheet.json", sheet(NASTY))
    text = write_report(run).read_text(encoding="utf-8")
    found = Page(text)
    assert {tag for tag, _ in found.elements} <= {
        "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "h3", "div", "nav", "a", "main", "section", "p", "table",
        "thead", "tbody", "tr", "th", "td", "i", "b", "span", "ul", "li", "svg", "text", "line", "polyline", "circle", "rect", "figure",
        "img", "details", "summary", "code", "pre", "br", "footer",
    }  # fmt: skip
    for tag, attributes in found.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("href", "src"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/")), (tag, value)
    style = re.search("<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    assert not re.search(r"url\(|@import|http", style[1])
    policy = next(attributes["content"] for tag, attributes in found.elements if attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    for link in {attributes["href"] for tag, attributes in found.elements if tag == "a"}:
        assert f'id="{str(link)[1:]}"' in text


def test_names_are_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", NASTY, dataset="/data/<i>pets", stopped="<u>nan</u>")
    write_data_sheet(run / "data_sheet.json", sheet(NASTY))
    found = page(run)
    for name in (*NASTY, "resnet18 on <i>pets", "training ended early: <u>nan</u>"):
        assert name in found.text
    assert [row[0] for row in found.table("class", *2 * ["images", "precision", "recall", "F1"])] == list(NASTY)


def test_metrics_match_the_predictions(tmp_path: Path) -> None:
    """Compared with scikit-learn, computed from the predictions in the folder."""
    run = make_run(tmp_path / "run", sure=1.5, count=90)
    record, found = read_summary(run), page(run)
    labels = record.config.classes
    truth, guess = [one.label for one in record.predictions], [one.predicted for one in record.predictions]
    right = sum(a == b for a, b in zip(truth, guess, strict=True))
    heads = ["part", "images", "right", "top-1", "95 % interval", "top-5", "macro F1", "loss", "ECE"]
    row = found.table(*heads)[0]
    assert row[:4] == ["Validation", "90", str(right), f"{100 * right / 90:.2f} %"]
    assert row[6] == f"{metrics.f1_score(truth, guess, average='macro'):.4f}"

    precision, recall, f1, count = metrics.precision_recall_fscore_support(truth, guess, labels=labels)
    expected = [[label, str(count[n]), *(f"{values[n]:.3f}" for values in (precision, recall, f1))] for n, label in enumerate(labels)]
    assert [row[:5] for row in found.table("class", *2 * ["images", "precision", "recall", "F1"])] == expected

    confusion = metrics.confusion_matrix(truth, guess, labels=labels)
    plain, normalised = [table for table in found.tables if table[0] == ["", *labels]][:2]
    assert [row[1:] for row in plain[1:]] == confusion.astype(str).tolist()
    shares = 100 * confusion / confusion.sum(1, keepdims=True)
    np.testing.assert_allclose([[float(cell) for cell in row[1:]] for row in normalised[1:]], shares, atol=0.05)

    wrong = confusion - np.diag(np.diag(confusion))
    true, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
    share = f"{100 * wrong[true, predicted] / confusion[true].sum():.1f} %"
    assert found.table("class", "predicted", "images", "share of class")[0] == [labels[true], labels[predicted], str(wrong.max()), share]

    surest = max((one for one in record.predictions if one.label != one.predicted), key=lambda one: one.score)
    expected = [surest.name, surest.label, surest.predicted, f"{100 * surest.score:.1f} %"]
    assert found.table("image", "class", "predicted", "score")[0] == expected


def test_the_headline_shows_the_test_part_if_there_is_one(tmp_path: Path) -> None:
    assert "Test top-1" in page(make_run(tmp_path / "with")).text
    without = page(make_run(tmp_path / "without", test=False)).text
    assert "Validation top-1" in without
    assert "Test top-1" not in without


def test_the_data_sheet_is_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_data_sheet(run / "data_sheet.json", sheet(("cat", "dog", "owl")))
    found = page(run)
    assert found.table("class", "training", "validation") == [
        ["cat", "40", "20"],
        ["dog", "41", "20"],
        ["owl", "42", "20"],
        ["all", "123", "60"],
    ]
    sizes = found.table("pixels, of 99 images", "smallest", "median", "largest")
    assert sizes == [["width", "31", "640", "4,032"], ["height", "17", "480", "3,024"]]
    assert found.table("images", "parts", "labels") == [["t/1.jpgv/2.jpg", "train, val", "cat, dog"]]
    assert found.table("image", "reason") == [["t/broken.jpg", "the image is empty"]]
    assert "7 of the 60 images of the validation part are in the training part too" in found.text


def test_settings_versions_and_the_command_are_shown(tmp_path: Path) -> None:
    found = page(make_run(tmp_path / "run", lr=0.125, batch_size=4))
    rows = {row[0]: row[1:] for row in found.table("setting", "value", "")}
    assert (rows["lr"], rows["batch_size"], rows["epochs"], rows["image_size"]) == (
        ["0.125", ""],
        ["4", ""],
        ["4", "resolved"],
        ["224", "resolved"],
    )
    assert "tlcli finetune --backbone resnet18 --dataset /data/pets --batch-size 4 --lr 0.125" in " ".join(found.text.split())
    assert [["tlcli", "0.1.0"], ["torch", "2.9.0"]] in found.tables


@pytest.mark.parametrize("name", ["data_sheet.json", "metrics.csv", "mistakes.png", "predictions.csv", "split.json"])
def test_missing_files_are_named(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / name).unlink(missing_ok=True)
    if name != "data_sheet.json":
        (run / "data_sheet.json").write_text("{}")  # of another version
    says = f"{name} is not in the run's folder: an earlier version wrote the run, or the file was removed."
    assert says in page(run).text
    if name == "data_sheet.json":
        assert page(run).table("class", "training")[-1] == ["all", "21"], "what the split says"


def test_a_run_of_an_earlier_version_is_shown_without_what_it_lacks(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    for part in (results["val"], results["test"]):
        for key in ("macro_f1", "top5", "calibration", "confusion"):
            del part[key]
        for of_class in part["classes"]:
            del of_class["f1"]
    (run / "results.json").write_text(json.dumps(results))
    found = page(run)
    assert "Not in results.json: an earlier version wrote the run." in found.text
    assert "The confusion matrix is not in results.json." in found.text
    assert [row[4] for row in found.table("class", *2 * ["images", "precision", "recall", "F1"])] == ["–"] * 3


def test_writing_the_page_again_changes_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(".")) == []


def test_an_unfinished_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nowhere: no such folder: give a run's folder"):
        write_report(tmp_path / "nowhere")
    run = make_run(tmp_path / "run")
    (run / "results.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"results.json: cannot be read: best_epoch: Field required"):
        write_report(run)
    (run / "results.json").unlink()
    with pytest.raises(NotFoundError, match=r"run: no finished run \(results.json missing\)"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_the_confusion_of_many_classes_is_an_image_with_one_pixel_per_cell(tmp_path: Path) -> None:
    labels = tuple(f"class {number}" for number in range(30))
    run = make_run(tmp_path / "run", labels, count=600, sure=4)
    found = page(run)
    image = next(attributes["src"] for tag, attributes in found.elements if attributes.get("class") == "pixels")
    with Image.open(io.BytesIO(base64.b64decode(str(image).removeprefix("data:image/png;base64,")))) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    counts = np.array(read_summary(run).results.val.confusion)
    assert pixels.shape == (30, 30, 3)
    np.testing.assert_array_equal((pixels == 255).all(2), counts == 0)
    darkest = np.unravel_index(pixels[..., 0].argmin(), counts.shape)
    assert counts[darkest] == counts.max()
    np.testing.assert_array_equal(pixels[darkest], [31, 95, 191])


def test_the_contact_sheet_is_embedded(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    drawn = Image.new("RGB", (640, 300), (200, 40, 90))
    drawn.save(run / "mistakes.png")
    source = next(attributes["src"] for tag, attributes in page(run).elements if attributes.get("class") == "sheet")
    with Image.open(io.BytesIO(base64.b64decode(str(source).removeprefix("data:image/jpeg;base64,")))) as opened:
        assert opened.size == (640, 300)
        np.testing.assert_allclose(np.asarray(opened)[150, 320], (200, 40, 90), atol=4)


def epochs(*values: float, stages: str = "") -> list[Epoch]:
    return [
        Epoch(stage=stages[number : number + 1] or "h", epoch=number + 1, train_loss=value, train_top1=0.5, val_loss=value, val_top1=0.5)
        for number, value in enumerate(values)
    ]


def points(chart: str, kind: str) -> list[tuple[float, float]]:
    svg = ElementTree.fromstring(chart)
    line = next(one for one in svg.iter("polyline") if one.get("class") == kind)
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.get("points", "").split())]


def test_curves_are_drawn_at_their_values() -> None:
    rows = epochs(4.0, 3.0, 1.0, 2.0)
    chart = line_chart("loss", rows, [1.0] * 4, [4.0, 3.0, 1.0, 2.0], best_epoch=3)
    across, down = np.array(points(chart, "val")).T
    np.testing.assert_allclose(np.diff(across), np.diff(across)[0], atol=0.2)
    assert np.corrcoef(down, [4.0, 3.0, 1.0, 2.0])[0, 1] == pytest.approx(-1, abs=1e-4)
    assert {y for _, y in points(chart, "train")} == {down[2]}
    best = next(one for one in ElementTree.fromstring(chart).iter("circle") if one.get("class") == "best")
    assert float(best.get("cx", 0)) == pytest.approx(across[2], abs=0.1)
    assert float(best.get("cy", 0)) == pytest.approx(down[2], abs=0.1)


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [1e-9, 1e-9], [float("nan"), 2.0, 1.0], [float("nan")], [1e6, 3.0], [0.3] * 500])
def test_any_values_are_drawn(values: list[float]) -> None:
    chart = line_chart("loss", epochs(*values), values, values, best_epoch=1)
    drawn = points(chart, "val")
    assert len(drawn) == sum(np.isfinite(values))
    for x, y in drawn:
        assert 40 <= x <= 480
        assert 20 <= y <= 240
    assert "nan" not in chart


def test_a_diverged_run_has_a_report(tmp_path: Path) -> None:
    """JSON has no NaN: the loss is null."""
    rows = [*default_epochs()[:3], EpochRow("full", 4, 0.1, float("nan"), 0.1, float("nan"), 0.1, 1.0)]
    run = make_run(tmp_path / "run", epochs=rows)
    results = json.loads((run / "results.json").read_text())
    results["val"]["loss"] = None
    (run / "results.json").write_text(json.dumps(results))
    assert page(run).table("part", "images", "right", "top-1", "95 % interval", "top-5", "macro F1", "loss", "ECE")[0][7] == "–"


@pytest.mark.parametrize("nasty", NASTY)
def test_the_text_of_a_chart_is_escaped(nasty: str) -> None:
    chart = line_chart(nasty, epochs(2.0, 1.0), [2.0, 1.0], [2.0, 1.0], best_epoch=2, unit=nasty)
    assert {element.tag for element in ElementTree.fromstring(chart).iter()} == {"svg", "text", "line", "polyline", "circle", "title"}
    assert nasty in Page(str(chart)).text
    assert ElementTree.fromstring(chart).get("aria-label") == nasty
