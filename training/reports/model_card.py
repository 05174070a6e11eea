"""A model card: what a model is, what it was trained on, how good it is and how it is used, in Hugging Face's layout."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tlcli.contract.files.atomic_file import whole_file
from tlcli.contract.maps.method_names import METHODS
from tlcli.contract.model.description import Description
from tlcli.training.data.listing import one_line
from tlcli.training.engine.model_selection import RULE, describe_kept
from tlcli.training.metrics.scores import Scores
from tlcli.training.metrics.significance import wilson_interval
from tlcli.training.reports.citations import TIMM, paper_of
from tlcli.training.reports.datasheet import DataSheet, read_data_sheet
from tlcli.training.runs.load_run import Run
from tlcli.training.runs.reproduce_command import finetune_command
from tlcli.training.runs.summary import Record, read_record
from tlcli.training.settings.config import FinetuneConfig

MODEL_CARD = "README.md"

_OURS = "<!-- Made by tlcli, and made anew with the next export. Take this line away to keep what you write here. -->"

_MOST_CLASSES = 200
"""Of more, those that are found worst."""

_TOLD = (
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
"""Settings that are told even where they are the defaults."""

_HERE = ("output", "name", "device", "workers", "tensorboard")
"""Settings that say how it was made here, not what was made."""

_SPLITS = {"val": "validation", "test": "test"}


def model_card(run: Run, description: Description) -> str:
    """The card of a run's exported model, as Markdown with a YAML header (https://huggingface.co/docs/hub/model-cards).

    It does not say where images and weights lie on this machine.

    Args:
        run: what was exported.
        description: of the exported file.

    Raises:
        NotFoundError, SettingsError: see `tlcli.training.runs.summary.read_record`.
    """
    record, sheet = read_record(run.path), read_data_sheet(run.path)
    sections = {
        "Intended use and limits": _limits(run, sheet),
        "Training data": _training_data(run, sheet),
        "Training procedure": _procedure(run, record),
        "Evaluation": _evaluation(run),
        "Calibration": _calibration(run, description),
        "Numbers": _numbers(description),
        "How to use it": _usage(description),
        "Class activation maps": _maps(description),
        "Citation": _citation(run),
    }
    text = "".join(f"\n## {title}\n\n{body}\n" for title, body in sections.items() if body)
    header = "".join(f"{line}\n" for line in _header(run, description))
    return f"---\n{header}---\n\n{_OURS}\n\n# {_escaped(description.name)}\n\n{_what_it_is(run, description, record.best_stage)}\n{text}"


def write_model_card(folder: Path, run: Run, description: Description) -> Path | None:
    """Write the card into a model's folder, whole or not at all; one that somebody has made their own is left alone.

    Returns:
        Its path; None if it was left alone.

    Raises:
        NotFoundError, SettingsError: see `model_card`.
        OSError: it cannot be written.
    """
    path = folder / MODEL_CARD
    if path.exists() and _OURS not in path.read_text(encoding="utf-8", errors="replace"):
        return None
    text = model_card(run, description)
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _header(run: Run, description: Description) -> Iterable[str]:
    """YAML, of which JSON's strings and numbers are a part."""
    yield "library_name: tlcli"
    yield "pipeline_tag: image-classification"
    yield "tags:"
    for tag in ("image-classification", "onnx", "transfer-learning", "class-activation-maps", run.network_config.backbone):
        yield f"- {_quoted(tag)}"
    base = _base_model(run)
    if base is not None:
        yield f"base_model: {_quoted(base)}"
    yield "metrics:\n- accuracy\n- f1"
    yield f"model-index:\n- name: {_quoted(description.name)}\n  results:"
    for part, scores in _parts(run).items():
        yield "  - task:\n      type: image-classification\n      name: Image classification"
        yield f"    dataset:\n      type: {_quoted(_slug(_dataset(run)))}\n      name: {_quoted(_dataset(run))}"
        yield f"      split: {_SPLITS[part]}"
        yield "    metrics:"
        for kind, name, value in (
            ("accuracy", "Accuracy", scores.top1),
            ("f1", "Macro F1", scores.macro_f1),
            ("loss", "Cross-entropy", scores.loss),
            ("expected_calibration_error", "Expected calibration error", scores.calibration.ece),
        ):
            yield f"    - type: {kind}\n      name: {name}\n      value: {json.dumps(round(value, 6))}"


def _what_it_is(run: Run, description: Description, stage: str | None) -> str:
    network, size = run.network_config, description.preprocessing
    parameters = sum(tensor.numel() for tensor in run.network.parameters())
    how = {
        "feature-extraction": "Its head was trained on the frozen features of the backbone",
        "full": "All of its layers were trained",
    }[run.config.mode]
    if run.config.mode == "full" and stage == "head":
        how = "Training all of its layers did no better than its head alone, trained on the frozen features of the backbone, which was kept"
    start = {"none": "random weights", "pretrained": "the backbone's published weights"}.get(
        run.config.weights, f"the weights of {_code(Path(run.config.weights).name)}"
    )
    labels = _escaped(one_line(run.classes[:20])) + (f" and {len(run.classes) - 20} more" if len(run.classes) > 20 else "")
    return (
        f"Classifies images into {len(run.classes)} classes: {labels}.\n\n"
        f"A {_code(network.backbone)} with the head {_code(network.head)}, {parameters / 1e6:.1f} million parameters, input"
        f" {size.height}x{size.width} pixels. {how}; it began with {start}. Exported by tlcli to one ONNX file that takes"
        " RGB images and answers with scores and class activation maps."
    )


def _limits(run: Run, sheet: DataSheet | None) -> str:
    lines = [
        "For images like those it was trained on, each of exactly one of its classes. It answers with one of them for any image"
        " whatever: what is none of them is not recognised as such.",
        "The figures below hold for images that are drawn as the evaluated ones were; other cameras, places or habits of cropping may"
        " do worse.",
        "A class activation map shows which part of the image the score depends on in this network. It is no proof that the network"
        " has understood the object, and no segmentation of it.",
        "The licences of the pretrained weights and of the images apply; this card does not know them.",
        *((f"Known of its images: {_escaped(warning)}." for warning in sheet.warnings) if sheet else ()),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _training_data(run: Run, sheet: DataSheet | None) -> str:
    images = ", ".join(f"{count:,} {name}" for name, count in run.results.images.items())
    lines = [f"{_code(_dataset(run))}: {images}; {run.results.left_out:,} could not be read and were left out."]
    if sheet is not None:
        classes = list(sheet.images["train"])[:_MOST_CLASSES]
        rows = [[name, *(f"{of_part.get(name, 0):,}" for of_part in sheet.images.values())] for name in classes]
        lines.append(_table(["class", *sheet.images], rows))
        if sheet.sizes is not None:
            width, height = sheet.sizes.width, sheet.sizes.height
            lines.append(
                f"Images are {width.smallest:,} to {width.largest:,} pixels wide (median {width.median:,.0f}) and"
                f" {height.smallest:,} to {height.largest:,} high (median {height.median:,.0f})."
            )
    lines.append(f"SHA-256 over the contents, labels and parts: {_code(run.dataset_fingerprint)}.")
    return "\n\n".join(lines)


def _procedure(run: Run, record: Record) -> str:
    """The settings that were used, and the command."""
    local = Path(run.config.dataset).is_absolute()
    public = {"dataset": f"PATH/TO/{_dataset(run)}" if local else _dataset(run), "weights": Path(run.config.weights).name, "data_dir": None}
    defaults = FinetuneConfig().model_dump(mode="json")
    chosen = [name for name, value in record.config.asked.items() if value is not None and value != defaults.get(name)]
    settings = {
        name: value
        for name, value in (record.settings | public).items()
        if value is not None and (name in _TOLD or (name in chosen and name not in _HERE))
    }
    rows = [[_code(name), _told(value)] for name, value in settings.items() if value not in ({}, (), [])]
    versions = ", ".join(f"{name} {version}" for name, version in record.config.versions.items())
    stopped = f" Training ended early: {_escaped(run.results.stopped)}." if run.results.stopped else ""
    kept = describe_kept(run.results.best_epoch, record.best_stage, run.config.mode)
    return "\n\n".join(
        (
            f"Kept was the network of {kept}. It has {RULE}.{stopped} The run took {record.seconds:,.0f} s ({record.config.device}).",
            _table(["setting", "value"], rows, escaped=True),
            "Made by:",
            f"```sh\n{finetune_command(record.config.asked | public)}\n```",
            f"Versions: {_escaped(versions)}.",
        )
    )


def _evaluation(run: Run) -> str:
    blocks = []
    for part, scores in _parts(run).items():
        low, high = (100 * end for end in wilson_interval(round(scores.top1 * scores.count), scores.count))
        top5 = "" if scores.top5 is None else f"; the right class is among the first five for {_percent(scores.top5)}"
        blocks.append(
            f"**{_SPLITS[part].capitalize()} part**, {scores.count:,} images: {_percent(scores.top1)} right (95 % interval"
            f" {low:.1f} to {high:.1f} %){top5}; macro F1 {scores.macro_f1:.4f}, cross-entropy {scores.loss:.4f}."
        )
        shown = list(scores.classes)
        if len(shown) > _MOST_CLASSES:
            shown = sorted(shown, key=lambda one: one.f1 or 0.0)[:_MOST_CLASSES]
            blocks.append(f"The {_MOST_CLASSES} classes with the lowest F1:")
        rows = [[one.label, f"{one.count:,}", *map(_share, (one.precision, one.recall, one.f1))] for one in shown]
        blocks.append(_table(["class", "images", "precision", "recall", "F1"], rows))
    if run.results.test is None:
        blocks.append("The epoch was chosen on these same images, so the figures are a little better than on others.")
    return "\n\n".join(blocks)


def _calibration(run: Run, description: Description) -> str:
    found = ", ".join(f"{_percent(scores.calibration.ece)} on the {_SPLITS[part]} part" for part, scores in _parts(run).items())
    text = (
        f"Expected calibration error ({len(run.results.val.calibration.bins)} bins, Guo et al. 2017, arXiv:1706.04599): {found}."
        " That far apart lie, on average, an answer's score and the share of right ones among answers of such scores."
    )
    if description.temperature == 1:
        return text
    return (
        f"{text}\n\nThese figures are the network's own. The exported file divides its logits by a temperature of"
        f" {description.temperature:.4g}: its answers are the same, its scores are not; `tlcli evaluate` measures the file."
    )


def _numbers(description: Description) -> str:
    """What smaller numbers than float32 cost; empty in float32."""
    found = description.provenance.agreement
    if found is None:
        return ""
    how = {
        "fp16": "The file computes in float16, from the normalised image to the last layer's input, and is meant for GPUs.",
        "int8": "The file's convolutions compute in int8, and it is meant for CPUs.",
    }[description.precision]
    calibrated = f" Ranges come from {_escaped(found.calibration)}." if found.calibration else ""
    right = "" if found.top1 is None else f"{_percent(found.top1)} are right, in float32 {_percent(found.top1_before or 0)}; "
    rows = [[name, _share(maps.rank_correlation), _share(maps.rank_correlation_median)] for name, maps in found.maps.items()]
    table = f"\n\nRank correlation of its maps with those in float32:\n\n{_table(['map', 'mean', 'median'], rows)}" if rows else ""
    return (
        f"{how}{calibrated} The figures above are the network's own, in float32. On {found.images:,} images ({_escaped(found.source)})"
        f" {right}the first class is the same as in float32 for {_percent(found.agreement)}.{table}"
    )


def _usage(description: Description) -> str:
    method = next((name for name in ("gradcam", *description.methods) if name in description.methods), None)
    flag = f" --cam {method}" if method else ""
    name = description.name
    python = "\n".join(
        (
            "from service import Client",
            "",
            'with Client("127.0.0.1", 8001) as client:',
            f'    answer = client.classify("image.jpg", model={json.dumps(name)}' + (f', method="{method}")' if method else ")"),
            "    print(answer.predictions[0].label, answer.predictions[0].score)",
        )
    )
    return (
        f"With this folder as `models/{name}`:\n\n```sh\ntlcli predict models/{name} image.jpg{flag}\ntlcli serve models/\n"
        f"tlcli classify image.jpg --model {name}{flag}\n```\n\nor, of that server, from Python:\n\n```python\n{python}\n```\n\n"
        "Any ONNX runtime runs the file: it takes uint8 RGB images `images` of"
        f" `[N, {description.preprocessing.height}, {description.preprocessing.width}, 3]`"
        f"{' (other sizes too)' if description.dynamic_size else ''} and answers `scores` `[N, {len(description.labels)}]`. Labels,"
        " preprocessing and provenance are JSON in its metadata, under `tlcli.description`."
    )


def _maps(description: Description) -> str:
    if not description.maps:
        return "The file was exported without maps."
    rows = [
        [
            _code(one.name),
            f"{METHODS[one.method].title}, {METHODS[one.method].source}",
            _code(one.layer),
            f"{one.height}x{one.width}",
            "in the graph" if one.in_graph else "beside it, by `predict` and by the server",
        ]
        for one in description.maps
    ]
    parity = description.provenance.parity
    checked = ""
    if parity is not None:
        worst = f", the maps by at most {max(parity.maps.values()):.1e} of their largest value" if parity.maps else ""
        checked = (
            f"\n\nWhen it was exported, the file was checked against PyTorch on {parity.images} images: logits differ by at most"
            f" {parity.logits:.1e}{worst}; the first class is the same for {100 * parity.top1_agreement:.0f} % of them."
        )
    return (
        "Made of the activations of a layer and of their gradients for a class, which are ordinary operators in the ONNX graph.\n\n"
        + _table(["name", "method", "layer", "size", "computed"], rows, escaped=True)
        + checked
    )


def _citation(run: Run) -> str:
    backbone = run.network_config.backbone
    paper = paper_of(backbone)
    own = f"{_code(backbone)}: {paper}" if paper else f"{_code(backbone)}: see the documentation of timm for the paper it is from"
    return f"- {own}\n- The implementation of the backbone: {TIMM}"


def _base_model(run: Run) -> str | None:
    """The published weights' name on the Hugging Face hub, where the run began with them."""
    published: Mapping[str, Any] = getattr(run.network.backbone, "pretrained_cfg", None) or {}
    hub, architecture, tag = (published.get(key) for key in ("hf_hub_id", "architecture", "tag"))
    if run.config.weights != "pretrained" or not hub:
        return None
    return f"{hub}{architecture}.{tag}" if hub.endswith("/") else str(hub)


def _parts(run: Run) -> dict[str, Scores]:
    """The test part first, where there is one."""
    parts = {"test": run.results.test, "val": run.results.val}
    return {name: scores for name, scores in parts.items() if scores is not None}


def _dataset(run: Run) -> str:
    spec = run.config.dataset
    return Path(spec).name if Path(spec).is_absolute() else spec


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._/-]+", "-", text).strip("-") or "images"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _told(value: object) -> str:
    match value:
        case Mapping():
            return _escaped(", ".join(f"{key}={one}" for key, one in value.items()))
        case list() | tuple():
            return _escaped(", ".join(map(str, value)))
        case _:
            return _escaped(str(value))


def _table(heads: list[str], rows: Iterable[list[str]], *, escaped: bool = False) -> str:
    """GitHub's Markdown. escaped: the cells are Markdown already."""
    lines = [heads, ["---"] * len(heads), *(row if escaped else list(map(_escaped, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    """As it is, on one line: no sign in it means anything to Markdown, a table's pipe included."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """As code where it can be; names with a backtick or a pipe are escaped instead."""
    return _escaped(text) if re.search(r"[`|\s]", text) else f"`{text}`"


def _quoted(text: str) -> str:
    """A YAML string in double quotes: JSON's, with what YAML does not allow in it escaped (YAML 1.2.2, section 5.1)."""
    return "".join(sign if sign.isprintable() else f"\\U{ord(sign):08x}" for sign in json.dumps(text, ensure_ascii=False))
