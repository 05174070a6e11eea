"""The sections of a report that say what the run was: its images, its settings, and how to make it again."""

from __future__ import annotations

import json
import shlex

from tlcli.training.reports.datasheet import DataSheet
from tlcli.training.reports.html.markup import Child, element
from tlcli.training.reports.html.tables import CALLED, MANY_CLASSES, MOST_LISTED, duration, missing, plain, table
from tlcli.training.runs.reproduce_command import finetune_words
from tlcli.training.runs.summary import Record
from tlcli.training.settings.config import FinetuneConfig
from tlcli.training.settings.run_file_names import DATA_SHEET, SPLIT


def data(record: Record, sheet: DataSheet | None) -> Child:
    """The images; without a data sheet, what the split says of them."""
    counts = sheet.images if sheet is not None else _counts_of_split(record)
    classes = list(next(iter(counts.values()))) if counts else []
    rows = [[name, *(f"{counts[part].get(name, 0):,}" for part in counts)] for name in classes]
    rows.append(["all", *(f"{sum(of_part.values()):,}" for of_part in counts.values())])
    counted = table(["class", *(CALLED.get(part, part).lower() for part in counts)], rows, numbers_from=1) if classes else missing(SPLIT)
    framed = element("div", counted, class_="tall") if len(classes) > MANY_CLASSES else counted
    if sheet is None:
        return missing(DATA_SHEET), element("h3", "Images, by split.json"), framed
    return element("div", element("div", element("h3", "Images"), framed), element("div", _facts(sheet)), class_="side"), _copies(sheet)


def _facts(sheet: DataSheet) -> Child:
    sizes = sheet.sizes
    facts = [
        ("data set", sheet.dataset),
        ("largest class over smallest", f"{sheet.imbalance:.3g} (training part)"),
        ("contents that occur twice or more", f"{sheet.duplicate_contents:,}"),
        ("of them with different labels", f"{sheet.contradictions:,}"),
        *((f"{CALLED[one.of].lower()} images also in {CALLED[one.also_in].lower()}", f"{one.images:,}") for one in sheet.overlaps),
        ("left out as unreadable", f"{len(sheet.left_out):,}"),
        ("left out as no image or no class", f"{sheet.skipped_count:,}"),
        ("of one colour everywhere", f"{sheet.near_uniform_count:,}"),
        *((("folders", sheet.layout),) if sheet.layout else ()),
        ("fingerprint", sheet.fingerprint),
    ]
    measured: Child = element("p", "No image's size could be read.", class_="soft small")
    if sizes is not None:
        rows = [
            [name, f"{spread.smallest:,}", f"{spread.median:,.0f}", f"{spread.largest:,}"]
            for name, spread in (("width", sizes.width), ("height", sizes.height))
        ]
        measured = table([f"pixels, of {sizes.measured:,} images", "smallest", "median", "largest"], rows, numbers_from=1)
    return element("h3", "Sizes"), measured, element("h3", "Facts"), table(["", ""], [list(fact) for fact in facts], headless=True)


def _copies(sheet: DataSheet) -> Child:
    shown: list[Child] = []
    if sheet.duplicates:
        rows = [[[(copy.name, element("br")) for copy in group], ", ".join(sorted({copy.part for copy in group})),
                 ", ".join(sorted({copy.label for copy in group}))] for group in sheet.duplicates[:MOST_LISTED]]  # fmt: skip
        says = f"The same content under several names: {len(rows)} of {sheet.duplicate_contents:,}"
        shown.append(element("details", element("summary", says), table(["images", "parts", "labels"], rows)))
    if sheet.left_out:
        rows = [[left.name, left.reason] for left in sheet.left_out[:MOST_LISTED]]
        says = f"Left out: {len(rows)} of {len(sheet.left_out):,} images that could not be read"
        shown.append(element("details", element("summary", says), table(["image", "reason"], rows)))
    if sheet.skipped:
        rows = [[one.name, "folder" if one.is_folder else "file", one.reason] for one in sheet.skipped[:MOST_LISTED]]
        says = f"Left out: {len(rows)} of {sheet.skipped_count:,} files that are no images and folders that are no classes"
        shown.append(element("details", element("summary", says), table(["name", "kind", "reason"], rows)))
    return shown


def _counts_of_split(record: Record) -> dict[str, dict[str, int]]:
    """Images by part and class; empty if the folder does not tell."""
    try:
        kept = json.loads((record.path / SPLIT).read_bytes())
        return {part: {name: len(names) for name, names in of_part.items()} for part, of_part in kept["parts"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def settings(record: Record) -> Child:
    """What was asked; what was left open, as it was resolved; and what it took."""
    config, resolved = record.config, record.settings
    unasked = FinetuneConfig().model_dump(mode="json")
    asked = [
        [
            element("code", name),
            _strong(plain(resolved[name]), value not in (None, unasked.get(name))),
            "" if value is not None else "resolved",
        ]
        for name, value in config.asked.items()
        if resolved[name] is not None
    ]
    preprocessing = config.network.get("preprocessing") or {}
    more = [[element("code", name), plain(value)] for name, value in {**config.plan, **preprocessing, "device": config.device}.items()]
    seconds = [[name, duration(value)] for name, value in record.results.seconds.items()]
    fingerprints = [
        ["weights before training", element("code", config.weights_fingerprint or "?")],
        ["data set", element("code", config.dataset_fingerprint or "?")],
    ]
    return element(
        "div",
        element("div", element("h3", "Settings; bold: not the default"), table(["setting", "value", ""], asked, wide=True)),
        element(
            "div",
            element("h3", "Resolved: stages, rates and the input"),
            table(["", ""], more, headless=True),
            element("h3", "Time"),
            table(["", ""], seconds, headless=True),
            element("h3", "Fingerprints"),
            table(["", ""], fingerprints, headless=True),
        ),
        class_="side",
    )


def _strong(text: str, strong: bool) -> Child:
    return element("b", text) if strong else text


def repeat(record: Record) -> Child:
    """The command that makes the run again, and the versions it was made with."""
    versions = [[name, version] for name, version in record.config.versions.items()]
    return (
        element("pre", [(element("span", shlex.quote(word)), " ") for word in finetune_words(record.config.asked)]),
        element(
            "p",
            "On a CPU the same command gives the same weights to the bit, with the same images, the same weights to begin with, the same"
            " number of PyTorch's threads, and these versions:",
            class_="soft small",
        ),
        table(["", ""], versions, headless=True) if versions else None,
    )
