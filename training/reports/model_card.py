"""Model card in Hugging Face's format, which describes a model, its training data, its metrics and its usage.

The card is rendered from the template `templates/model_card.md.j2`. All text that comes from names or files passes through one of the
filters `escaped`, `code` and `table`, so that Markdown shows it literally.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlcli.contract.files.atomic_file import whole_file
from tlcli.contract.maps.method_names import METHODS
from tlcli.contract.model.description import Description
from tlcli.training.data.listing import one_line
from tlcli.training.engine.model_selection import describe_kept, rule_of
from tlcli.training.metrics.headline import why_macro_recall
from tlcli.training.metrics.multi_label import MultiLabelScores
from tlcli.training.metrics.scores import Scores
from tlcli.training.metrics.significance import wilson_interval
from tlcli.training.reports.citations import TIMM, paper_of
from tlcli.training.reports.datasheet import DataSheet, read_data_sheet
from tlcli.training.runs.load_run import Run
from tlcli.training.runs.reproduce_command import finetune_command
from tlcli.training.runs.summary import RunSummary, read_summary
from tlcli.training.settings.config import FinetuneConfig

if TYPE_CHECKING:
    from jinja2 import Environment

MODEL_CARD = "README.md"

_MADE_BY_US = "<!-- Made by tlcli,"
_MARKER = f"{_MADE_BY_US} and overwritten by the next export. Remove this line to keep your edits. -->"

_MOST_CLASSES = 200
"""Maximum number of classes in a table. If there are more, the table of metrics shows those with the lowest F1 score."""

_ALWAYS_SHOWN = (
    "backbone",
    "weights",
    "head",
    "mode",
    "epochs",
    "batch_size",
    "optimizer",
    "lr",
    "schedule",
    "weight_decay",
    "label_smoothing",
    "seed",
)
"""Settings that are shown even if they have their default values."""

_LOCAL = ("output", "name", "device", "workers", "tensorboard")
"""Settings that depend on the machine or the user and do not describe the model."""


def model_card(run: Run, description: Description) -> str:
    """Return the model card of an exported run as Markdown with a YAML header (https://huggingface.co/docs/hub/model-cards).

    The card does not reveal the location of images and weights on this machine.

    Args:
        run: exported run.
        description: description of the exported file.

    Raises:
        NotFoundError, SettingsError: see `tlcli.training.runs.summary.read_summary`.
    """
    content = _content(run, description, read_summary(run.path), read_data_sheet(run.path))
    return _environment().get_template("model_card.md.j2").render(content)


def write_model_card(folder: Path, run: Run, description: Description) -> Path | None:
    """Write the model card to the folder of a model atomically. A card that the user has edited is not overwritten.

    Returns:
        Path of the card, or None if an edited card was kept.

    Raises:
        NotFoundError, SettingsError: see `model_card`.
        OSError: the file cannot be written.
    """
    path = folder / MODEL_CARD
    if path.exists() and _MADE_BY_US not in path.read_text(encoding="utf-8", errors="replace"):
        return None
    text = model_card(run, description)
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


@dataclass(frozen=True)
class Table:
    """Markdown table.

    escaped: True if the cells are already valid Markdown and need no escaping.
    """

    heads: list[str]
    rows: list[list[str]]
    escaped: bool = False


@dataclass(frozen=True)
class LabelPartScores:
    """Metrics of a part with several labels per image. name: name of the split on the Hugging Face Hub."""

    name: str
    scores: MultiLabelScores
    class_table: Table


@dataclass(frozen=True)
class PartScores:
    """Metrics of a part.

    name: name of the split on the Hugging Face Hub. interval: 95 % confidence interval of the top-1 accuracy, in [0, 1].
    """

    name: str
    scores: Scores
    interval: tuple[float, float]
    class_table: Table


def _content(run: Run, description: Description, record: RunSummary, sheet: DataSheet | None) -> dict[str, Any]:
    """Return the template variables of the model card."""
    parts, agreement = _parts(run), description.provenance.agreement
    public = _public_settings(run)
    why = None if sheet is None else why_macro_recall(sheet.images["train"])
    return {
        "header": _header(run, description, parts, leads_macro_recall=why is not None),
        "label_parts": _label_parts(run),
        "marker": _MARKER,
        "description": description,
        "network": run.network_config,
        "size": description.preprocessing,
        "results": run.results,
        "record": record,
        "classes": run.classes,
        "class_list": one_line(run.classes[:20]),
        "more_classes": max(0, len(run.classes) - 20),
        "parameters": sum(tensor.numel() for tensor in run.network.parameters()),
        "trained": _trained(run, record.best_stage),
        "start": _start(run, sheet),
        "warnings": () if sheet is None else sheet.warnings,
        "dataset": _dataset(run),
        "dataset_fingerprint": run.dataset_fingerprint,
        "image_counts": ", ".join(f"{count:,} {name}" for name, count in run.results.images.items()),
        "class_counts": None if sheet is None else _class_counts(sheet),
        "sizes": None if sheet is None else sheet.sizes,
        "kept": describe_kept(run.results.best_epoch, record.best_stage, run.config.mode),
        "rule": rule_of(description.task),
        "settings": _settings(record, public),
        "command": finetune_command(record.config.asked | public),
        "versions": ", ".join(f"{name} {version}" for name, version in record.config.versions.items()),
        "parts": parts,
        "why_macro_recall": why,
        "most_classes": _MOST_CLASSES,
        "agreement": agreement,
        "precision": {
            "fp16": "The file computes in float16, from the normalised image to the last layer's input, and is meant for GPUs.",
            "int8": "The file's convolutions compute in int8, and it is meant for CPUs.",
        }.get(description.precision),
        "rank_correlations": None
        if agreement is None
        else Table(
            ["map", "mean", "median"],
            [[name, _number(maps.rank_correlation), _number(maps.rank_correlation_median)] for name, maps in agreement.maps.items()],
        ),
        "method": next((name for name in ("gradcam", *description.methods) if name in description.methods), None),
        "maps": _maps(description) if description.maps else None,
        "parity": description.provenance.parity,
        "paper": paper_of(run.network_config.backbone),
        "timm": TIMM,
    }


def _header(run: Run, description: Description, parts: Iterable[PartScores], *, leads_macro_recall: bool) -> str:
    """Return the metadata for the Hugging Face Hub as YAML."""
    from huggingface_hub import EvalResult, ModelCardData  # the import takes a second

    several = description.task == "multi-label"
    metrics = [
        (part.name, *metric)
        for part in parts
        for metric in (
            *((("balanced_accuracy", "Macro recall", part.scores.macro_recall or 0.0),) if leads_macro_recall else ()),
            ("accuracy", "Accuracy", part.scores.top1),
            ("f1", "Macro F1", part.scores.macro_f1),
            ("loss", "Cross-entropy", part.scores.loss),
            ("expected_calibration_error", "Expected calibration error", part.scores.calibration.ece),
        )
    ]
    metrics += [
        (part.name, *metric)
        for part in _label_parts(run)
        for metric in (
            ("mean_average_precision", "Mean average precision", part.scores.mean_ap),
            ("f1", "Macro F1", part.scores.macro_f1),
            ("loss", "Binary cross-entropy", part.scores.loss),
        )
    ]
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Multi-label image classification" if several else "Image classification",
            dataset_type=_slug(_dataset(run)),
            dataset_name=_dataset(run),
            dataset_split=split,
            metric_type=kind,
            metric_name=name,
            metric_value=round(value, 6),
        )
        for split, kind, name, value in metrics
    ]
    kind_tags = ["multi-label-image-classification"] if several else []
    names = ["mean_average_precision", "f1"] if several else [*(["balanced_accuracy"] if leads_macro_recall else ()), "accuracy", "f1"]
    return ModelCardData(
        library_name="tlcli",
        pipeline_tag="image-classification",
        tags=["image-classification", *kind_tags, "onnx", "transfer-learning", "class-activation-maps", run.network_config.backbone],
        base_model=_base_model(run),
        metrics=names,
        model_name=description.name,
        eval_results=results,
    ).to_yaml()


def _trained(run: Run, stage: str | None) -> str:
    if run.config.mode == "feature-extraction":
        return "Its head was trained on the frozen features of the backbone"
    if stage == "head":
        return (
            "Training all of its layers did no better than its head alone, trained on the frozen features of the backbone, which was kept"
        )
    return "All of its layers were trained"


def _start(run: Run, sheet: DataSheet | None) -> str:
    weights = run.config.weights
    if run.config.from_run is not None:
        origin = None if sheet is None else sheet.origin
        classes = () if origin is None else (("kept", origin.kept), ("new", origin.new), ("dropped", origin.dropped))
        counts = ", ".join(f"{len(names)} {word}" for word, names in classes if names)
        return f"the run {_code(run.config.from_run.name)}" + (f" (classes: {counts})" if counts else "")
    start = {"none": "random weights", "pretrained": "the backbone's published weights"}
    return start.get(weights, f"the weights of {_code(Path(weights).name)}")


def _class_counts(sheet: DataSheet) -> Table:
    classes = list(sheet.images["train"])[:_MOST_CLASSES]
    return Table(
        ["class", *sheet.images], [[name, *(f"{by_class.get(name, 0):,}" for by_class in sheet.images.values())] for name in classes]
    )


def _public_settings(run: Run) -> dict[str, Any]:
    """Return the settings that contain file names, without the folders of those files."""
    is_local = Path(run.config.dataset).is_absolute()
    dataset = f"PATH/TO/{_dataset(run)}" if is_local else _dataset(run)
    start = run.config.from_run
    public = {"dataset": dataset, "data_dir": None}
    return public | ({"weights": Path(run.config.weights).name} if start is None else {"from_run": f"runs/{start.name}"})


def _settings(record: RunSummary, public: dict[str, Any]) -> Table:
    defaults = FinetuneConfig().model_dump(mode="json")
    changed = {name for name, value in record.config.asked.items() if value is not None and value != defaults.get(name)}
    rows = [
        [_code(name), _shown(value)]
        for name, value in (record.settings | public).items()
        if value not in (None, {}, (), []) and (name in _ALWAYS_SHOWN or (name in changed and name not in _LOCAL))
    ]
    return Table(["setting", "value"], rows, escaped=True)


def _parts(run: Run) -> list[PartScores]:
    """Return the metrics of each part. If there is a test part, it comes first."""
    parts = []
    for name, scores in (("test", run.results.test), ("validation", run.results.val)):
        if not isinstance(scores, Scores):
            continue
        classes = list(scores.classes)
        if len(classes) > _MOST_CLASSES:
            classes = sorted(classes, key=lambda row: row.f1 or 0.0)[:_MOST_CLASSES]
        rows = [[row.label, f"{row.count:,}", *map(_number, (row.precision, row.recall, row.f1))] for row in classes]
        table = Table(["class", "images", "precision", "recall", "F1"], rows)
        parts.append(PartScores(name, scores, wilson_interval(round(scores.top1 * scores.count), scores.count), table))
    return parts


def _label_parts(run: Run) -> list[LabelPartScores]:
    """Return the metrics of each part with several labels per image; empty for one label per image."""
    parts = []
    for name, scores in (("test", run.results.test), ("validation", run.results.val)):
        if not isinstance(scores, MultiLabelScores):
            continue
        lowest = sorted(scores.classes, key=lambda row: row.average_precision or 0.0)[:_MOST_CLASSES]
        shown = scores.classes if len(scores.classes) <= _MOST_CLASSES else lowest
        rows = [
            [row.label, f"{row.count:,}", *map(_number, (row.average_precision, row.threshold, row.precision, row.recall, row.f1))]
            for row in shown
        ]
        table = Table(["label", "images", "AP", "threshold", "precision", "recall", "F1"], rows)
        parts.append(LabelPartScores(name, scores, table))
    return parts


def _maps(description: Description) -> Table:
    rows = [
        [
            _code(output.name),
            f"{METHODS[output.method].title}, {METHODS[output.method].source}",
            _code(output.layer),
            f"{output.height}x{output.width}",
            "in the graph" if output.in_graph else "outside the graph, by `predict` and by the server",
        ]
        for output in description.maps
    ]
    return Table(["name", "method", "layer", "size", "computed"], rows, escaped=True)


def _base_model(run: Run) -> str | None:
    """Return the name of the pretrained weights on the Hugging Face Hub; None if the run did not start from weights there."""
    published: Mapping[str, Any] = getattr(run.network.backbone, "pretrained_cfg", None) or {}
    hub, architecture, tag = (published.get(key) for key in ("hf_hub_id", "architecture", "tag"))
    if run.config.weights != "pretrained" or run.config.from_run is not None or not hub:
        return None
    return f"{hub}{architecture}.{tag}" if hub.endswith("/") else str(hub)


def _dataset(run: Run) -> str:
    spec = run.config.dataset
    return Path(spec).name if Path(spec).is_absolute() else spec


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._/-]+", "-", text).strip("-") or "images"


# ---- template filters


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # needed only to write a card

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False,  # the output is Markdown, which the filters escape
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(escaped=_escaped, code=_code, table=_table, number=_number, percent=_percent, json=json.dumps)
    return environment


def _escaped(text: str) -> str:
    """Return text on one line with all Markdown characters escaped, including the pipe of tables."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Format text as inline code. Text that contains a backtick, a pipe or white space is escaped instead."""
    return _escaped(text) if re.search(r"[`|\s]", text) else f"`{text}`"


def _table(table: Table) -> str:
    """Format a table as GitHub-flavoured Markdown."""
    rows = table.rows if table.escaped else [[_escaped(cell) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [table.heads, ["---"] * len(table.heads), *rows])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _shown(value: object) -> str:
    match value:
        case Mapping():
            return _escaped(", ".join(f"{key}={item}" for key, item in value.items()))
        case list() | tuple():
            return _escaped(", ".join(map(str, value)))
        case _:
            return _escaped(str(value))
