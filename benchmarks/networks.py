"""Distance of the maps in the graph from a float64 reference, network by network: writes the table in docs/networks.md.

    python benchmarks/networks.py [--out docs/networks.md] [--images FOLDER] [NETWORK[,ARGUMENT=NUMBER ...][:SIZE] ...]
    python benchmarks/networks.py --modules [--no-files] [MODULE ...]

Each network is built with random weights (and batch norms as after training) and exported twice: with the maps of its last layer, and with
those of the layer nearest the middle, in the order of execution, whose output is rectified. The output must be rectified because Grad-CAM++
has a pole at sum(A) g = -2 and XGrad-CAM at sum(A) = 0, which only a layer with negative outputs can reach. Every method in the graph is
compared, for every class, with a reference written from the papers in float64 with autograd (tests/helpers/exports/reference.py): the
largest difference relative to the largest value of the image's maps. The table has the median of three images: derivatives of ReLU and max
pooling jump, and an image on such an edge, to the last digit of float32, has another map in any two implementations. Ablation-CAM and
Recipro-CAM are compared on one image. Beside a difference beyond the tolerance is that of the same reference in float32, in brackets.
Images are drawn shapes, or those of FOLDER. If a network cannot be exported, the table has the reason. Rows are written as they are done,
and existing rows are kept unless their network is named. Without names, there is one network of every timm module at least.

With --modules the second table is written instead: one model of every timm module against timm's own (`benchmarks/timm_modules.py`).
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import timm
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import timm_modules
from tests.helpers.exports.reference import Reference
from tlcli.contract.errors import TlcliError, first_line
from tlcli.contract.files.atomic_file import whole_file
from tlcli.contract.images import decoding
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.maps.method_names import COSTLY, IN_GRAPH, OF_ATTENTION
from tlcli.contract.model.description import Description, Provenance
from tlcli.contract.model.onnx_model import Model
from tlcli.exports.exporter import describe_explainer
from tlcli.exports.onnx_writer import write_graph
from tlcli.exports.rewrite.closed_graph import check_graph, describe
from tlcli.exports.trace.explainer import Explainer
from tlcli.training.data.shapes import draw
from tlcli.training.models.network import CutError, ImageNetwork, NetworkConfig, WholeNetwork, build, create_backbone
from tlcli.training.models.target_layers import TargetLayer, list_layers, resolve_layers, tapped

NETWORKS = tuple(  # a light one of each family first
    """
resnet18 resnet26d seresnet18 legacy_seresnet18 skresnet18 resnext26ts gcresnext26ts ecaresnet26t vgg11_bn densenet121
efficientnet_b0 tf_efficientnetv2_b0 mobilenetv2_100 mobilenetv3_small_100 mobilenetv4_conv_small mnasnet_small fbnetc_100 lcnet_050
tinynet_e hardcorenas_a mixnet_s regnetx_002 regnety_002 convnext_atto convnextv2_atto resnest14d dpn68 ghostnet_100 repghostnet_050
hrnet_w18_small nf_regnet_b0 nf_resnet26 eca_nfnet_l0 repvgg_a0 mobileone_s0 gernet_s cspresnet50 darknet17 res2net50_26w_4s rexnet_100
selecsls42b:160 ese_vovnet19b_dw starnet_s1 edgenext_xx_small poolformer_s12 fastvit_t8 inception_next_atto hgnetv2_b0 mobilevit_xxs
mobilevitv2_050 dla34 xception41 resnetv2_50d_gn inception_v3:160 alexnet:128 googlenet squeezenet1_1
shufflenet_v2_x0_5 mnasnet0_5 resnet50 vgg16 seresnet50 resnext50_32x4d resnetrs50 cspdarknet53 legacy_xception:128 inception_v4:160
inception_resnet_v2:160 bat_resnext26ts:256
convmixer_768_32 resnetv2_50x1_bit nasnetalarge:128 tresnet_m halonet26t:256 focalnet_tiny_srf efficientformer_l1:224
vit_tiny_patch16_224,img_size=112 deit_tiny_patch16_224,img_size=112 deit_tiny_distilled_patch16_224,img_size=112
cait_xxs24_224,img_size=112 visformer_tiny,img_size=112 levit_128s,img_size=112 levit_conv_128s,img_size=112 levit_256d,img_size=112
gmlp_ti16_224,img_size=112 volo_d1_224,img_size=112 tnt_s_patch16_224,img_size=112 vit_tiny_r_s16_p8_224,img_size=128
beit_base_patch16_224,depth=2,img_size=112 samvit_base_patch16_224,depth=2,img_size=112 naflexvit_base_patch16_gap,depth=2,img_size=112
qwen3_vit_88m,depth=2,img_size=112 gemma4_vit_167m,depth=1,img_size=112 deepseek_vit_412m,depth=1,img_size=112
lambda_resnet26t,img_size=128 coatnet_nano_rw_224,img_size=128 maxvit_tiny_tf_224,img_size=128 swin_tiny_patch4_window7_224,img_size=128
swinv2_tiny_window8_256,img_size=128 swinv2_cr_tiny_224,img_size=128 eca_botnext26ts_256,img_size=128 coat_tiny,img_size=128
maxvit_pico_rw_256,img_size=128 gcvit_xxtiny,img_size=128 hiera_tiny_224,img_size=128 mvitv2_tiny,img_size=128 nest_tiny,img_size=128
sequencer2d_s,img_size=128 twins_svt_small,img_size=128 vitamin_small_224,img_size=128
""".split()  # noqa: SIM905
)
CLASSES = 5
TOLERANCE = 1e-4
AS_FLOAT32 = 2
"""Most that a difference may be of the one that PyTorch has in float32: two roundings of the same sum differ by chance."""
LOWEST_RECTIFIED = -0.4
"""SiLU, GELU and Hardswish go down to -0.28, -0.17 and -0.375."""
FEWEST_CHANNELS = 8
"""What has fewer is likely an attention's logits or gate, not a layer of features."""
SCALES = (0.3, 0.9)
SWITCHED_OFF = 1e-3
"""Scales of residual branches start between 0 and 0.00001."""
METHODS = (*IN_GRAPH, *OF_ATTENTION)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--out", type=Path, default=Path("docs/networks.md"))
    parser.add_argument("--images", type=Path)
    parser.add_argument("--modules", action="store_true", help="compare one model of every timm module, or of those named, with timm's own")
    parser.add_argument("--no-files", action="store_true", help="with --modules: compare the networks only, not the exported files")
    arguments = parser.parse_args()
    if arguments.modules:
        compare_modules(arguments.networks, arguments.out, not arguments.no_files)
        return
    timm.layers.set_fused_attn(False)  # as the exporter does
    rows = _read(arguments.out)
    for named in arguments.networks or networks():
        name, _, size = named.partition(":")
        if _shown(name) in rows and not arguments.networks:
            continue
        began = time.perf_counter()
        rows[_shown(name)] = measure(name, int(size) if size else None, arguments.images)
        for row in rows[_shown(name)]:
            print(row, f"{time.perf_counter() - began:.0f} s", flush=True)
        _write(arguments.out, rows)


def networks() -> list[str]:
    """Return the networks of the first table: `NETWORKS`, and those of the second that are not among them."""
    known = {_backbone(named) for named in NETWORKS}
    return [*NETWORKS, *(name for name in (named.partition("=")[2] for named in timm_modules.MODELS) if _backbone(name) not in known)]


def _backbone(named: str) -> str:
    return re.split("[:,]", named)[0]


def _shown(name: str) -> str:
    """Return a network's name as the table has it, with its arguments in brackets."""
    backbone, *pairs = name.split(",")
    return " ".join([backbone, *(f"({pair})" for pair in pairs)])


def compare_modules(modules: list[str], out: Path, files: bool) -> None:
    """Fill in the table of timm modules; existing rows are kept unless their module is named or their file is still to be run."""
    rows = timm_modules.read(out.read_text(encoding="utf-8")) if out.exists() else {}
    for named in timm_modules.MODELS:
        module = named.partition("=")[0]
        is_due = named not in rows or (files and rows[named].endswith(f"{timm_modules.NOT_RUN} |"))
        if module in modules or (not modules and is_due):
            began = time.perf_counter()
            rows[named] = timm_modules.measure(named, files)
            print(rows[named], f"{time.perf_counter() - began:.0f} s", flush=True)
            _write(out, _read(out), timm_modules.section(rows))


def measure(named: str, size: int | None, folder: Path | None) -> list[str]:
    """Return a row per layer of a network, or one row with the reason why there is none."""
    backbone, *pairs = named.split(",")
    model_kwargs = {key: int(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    name = _shown(named)
    family = timm.models.model_entrypoint(backbone).__module__.rsplit(".", 1)[-1]
    size = size or model_kwargs.get("img_size") or timm_modules.input_size(timm.create_model(backbone, **model_kwargs))
    preprocessing = Preprocessing(height=size, width=size)
    torch.manual_seed(0)
    try:
        network = trained_looking(_build(backbone, model_kwargs, preprocessing))
        images = np.stack(_images(preprocessing, folder))
        last = resolve_layers(network, None)[0].name
        middle = _middle(network, images)
    except TlcliError as error:
        return [f"| {name} | {family} | {size} | | not exported: {error} |"]
    rows = []
    for where, layer in (("last", last), ("middle", middle)):
        head = f"| {name} | {family} | {size} | {where}: `{layer}` |"
        try:
            differences = compare(network, layer, images)
            rows.append(head + " " + " | ".join(differences.get(key, "–") for key in ("logits", *METHODS)) + " |")
        except TlcliError as error:
            rows.append(f"{head} not exported: {error} |")
        except Exception as error:  # noqa: BLE001  # a defect of ours or of a library: it goes into the table, the next network is tried
            traceback.print_exc()
            rows.append(f"{head} failed: {type(error).__name__}: {first_line(error)} |")
    return rows


def _build(name: str, model_kwargs: dict[str, int], preprocessing: Preprocessing) -> ImageNetwork:
    """Build a network with random weights and a new linear head, or with its own head if it cannot be split into features and a head."""
    config = NetworkConfig(backbone=name, model_kwargs=dict(model_kwargs), head="linear", num_classes=CLASSES, preprocessing=preprocessing)
    try:
        return build(config)
    except CutError:
        own = config.model_copy(update={"head": "original"})
        return WholeNetwork(own, create_backbone(name, own.model_kwargs, num_classes=CLASSES)).eval()


def compare(network: ImageNetwork, layer: str, images: np.ndarray) -> dict[str, str]:
    """Return the relative difference of the logits and of each method's maps: the largest of an image, the median of the images.

    Beyond the tolerance, that of float32 PyTorch is added in brackets.
    """
    with tempfile.TemporaryDirectory() as folder:
        explainer = Explainer(network, None, [layer])
        path = Path(folder) / "model.onnx"
        write_graph(explainer, path)
        describe(path, _description(explainer))
        check_graph(path)
        model = Model.open(path, device="cpu")
    (target,) = resolve_layers(network, [layer])
    layout = target.layout
    tokens = (layout.prefix, layout.height, layout.width) if layout.kind == "tokens" else None
    exact, single = (Reference(network, layer, tokens, layout.kind == "channels_last", dtype) for dtype in (torch.float64, torch.float32))
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    for number, image in enumerate(images):
        names = [name for name in model.description.graph_maps if name not in COSTLY or number == 0]
        answer = model.run(image[None], range(CLASSES), names)
        assert answer.classes is not None
        for name, values in {"logits": answer.logits, **answer.maps}.items():
            expected = _of(exact, name, image, answer.classes)
            ours.setdefault(name, []).append(_difference(values, expected))
            if not ours[name][-1] <= TOLERANCE:
                theirs.setdefault(name, []).append(_difference(_of(single, name, image, answer.classes), expected))
    medians = {name: statistics.median(found) for name, found in ours.items()}
    return {
        name: f"{median:.1e}" if median <= TOLERANCE or math.isnan(median) else f"{median:.1e} ({statistics.median(theirs[name]):.1e})"
        for name, median in medians.items()
    }


def _of(reference: Reference, name: str, image: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the logits or the maps of a reference.

    Gradients are those of two equal images: for one image alone, PyTorch's are wrong in EfficientViT's attention (docs/log.md).
    """
    if name in COSTLY:
        return reference.maps(name, image[None], classes)
    images, twice = np.stack([image, image]), np.repeat(classes, 2, axis=0)
    return reference.observe(images, twice)[0].numpy()[:1] if name == "logits" else reference.maps(name, images, twice)[:1]


def _difference(values: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference relative to the largest value; nan where all are zero, and nothing is compared."""
    largest = float(np.abs(expected).max())
    return float(np.abs(values - expected).max()) / largest if largest else math.nan


def _middle(network: ImageNetwork, images: np.ndarray) -> str:
    """Return the layer nearest the middle whose output is rectified, preferably by ReLU; without any, the layer in the middle."""
    outermost: dict[int, TargetLayer] = {}
    for layer in list_layers(network):
        if layer.channels >= FEWEST_CHANNELS and layer.name.count(".") <= outermost.get(layer.number, layer).name.count("."):
            outermost[layer.number] = layer
    names = [layer.name for layer in outermost.values()]
    lowest: dict[str, float] = {}

    def note(name: str, output: torch.Tensor) -> torch.Tensor:
        lowest[name] = float(output.min())
        return output

    with torch.no_grad(), tapped(network, [*outermost.values()], note):
        network.predict(images)
    middle = len(names) // 2
    for least in (0.0, LOWEST_RECTIFIED):
        rectified = [number for number in range(len(names) // 4, 3 * len(names) // 4) if lowest.get(names[number], -1.0) >= least]
        if rectified:
            return names[min(rectified, key=lambda number: abs(number - middle))]
    return names[middle]


def trained_looking(network: ImageNetwork) -> ImageNetwork:
    """Set batch norms as after training: statistics of images, random scales and shifts; also the scales of residual branches.

    With the initial values some branches are switched off, and the output hardly depends on the image. With larger scales and no shifts a
    network is chaotic, unlike any trained one: each layer multiplies the rounding of the one before.
    """
    size = network.config.preprocessing.height
    shapes = np.stack([np.asarray(draw(index, 1, size=size).image) for index in range(16)])
    for name, parameter in network.named_parameters():
        if not name.endswith("bias") and float(parameter.abs().max()) < SWITCHED_OFF:
            torch.nn.init.uniform_(parameter, *SCALES)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        if norm.affine:
            norm.weight.data.uniform_(*SCALES)
            norm.bias.data.normal_()
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    with torch.no_grad():
        network.predict(shapes)
    for norm in norms:
        norm.eval()
    return network.requires_grad_(False)


def _description(explainer: Explainer) -> Description:
    provenance = Provenance(created="", versions={}, backbone="", head="linear", weights="none")
    return describe_explainer(explainer, "model", [f"class_{number}" for number in range(CLASSES)], provenance)


def _images(preprocessing: Preprocessing, folder: Path | None) -> list[np.ndarray]:
    if folder is None:
        return [np.asarray(draw(index, 0, size=preprocessing.height).image) for index in range(3)]
    found = decoding.find([folder])
    return [preprocessing.apply(decoding.read(found[index * len(found) // 3])) for index in range(3)]


HEAD = """# Networks

Distance of the maps in the exported graph from a float64 autograd reference that is written from the papers: the largest difference
relative to the largest value of an image's maps, the median of three images. Written by `benchmarks/networks.py`, which describes
the procedure; random weights, {classes} classes, on ONNX Runtime on a CPU. `size` is the input's height and width in pixels. A dash:
the method is not defined there (CAM, if the head is not one linear layer on the layer's spatial mean; Recipro-CAM, by default, in layers
of more than 1,024 positions; rollout and LeGrad without global attention). An empty cell: not measured. Beside a difference of more than
{tolerance:g} is that of the same formulas in PyTorch's own float32, in brackets. Bold: more than {tolerance:g} and more than {as_float32}
times PyTorch's, or nothing to compare (nan: all maps are zero).

{summary}

| network | family | size | layer | logits | {methods} |
|---|---|---|---|---|{rule}
"""


def _write(path: Path, rows: dict[str, list[str]], modules: str | None = None) -> None:
    """Write the page. `modules` is the second table; None keeps the existing one."""
    if modules is None:
        kept = timm_modules.read(path.read_text(encoding="utf-8")) if path.exists() else {}
        modules = timm_modules.section(kept) if kept else ""
    lines = [_bold(row) for name in rows for row in rows[name]]
    good = {name for name in rows if len(rows[name]) == 2 and not any("not exported" in row or "failed" in row for row in rows[name])}
    within = {name for name in good if not any("**" in _bold(row) for row in rows[name])}
    families = {row.split("|")[2].strip() for name in within for row in rows[name]}
    summary = (
        f"{len(rows)} networks tried: {len(good)} exported at both layers, {len(within)} of them, of {len(families)} of timm's"
        f" {len(timm_modules.timm_modules())} modules, within {TOLERANCE:g} or {AS_FLOAT32} times PyTorch's own difference."
    )
    head = HEAD.format(
        tolerance=TOLERANCE,
        as_float32=AS_FLOAT32,
        classes=CLASSES,
        summary=summary,
        methods=" | ".join(METHODS),
        rule="---|" * len(METHODS),
    )
    with whole_file(path) as temporary:
        temporary.write_text(head + "\n".join(lines) + "\n" + (f"\n{modules}" if modules else ""), encoding="utf-8")


def _bold(row: str) -> str:
    cells = row.split("|")
    return "|".join(f" **{cell.strip()}** " if number >= 5 and _exceeds(cell) else cell for number, cell in enumerate(cells))


def _exceeds(cell: str) -> bool:
    ours, _, pytorchs = cell.strip().rstrip(")").partition(" (")
    try:
        return not float(ours) <= max(TOLERANCE, AS_FLOAT32 * float(pytorchs or 0))
    except ValueError:
        return False


def _read(path: Path) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").partition("## Every timm module")[0].splitlines():
            if line.startswith("| ") and not line.startswith("| network"):
                columns = 5 + len(METHODS)  # rows of an earlier version have fewer
                missing = 0 if "not exported" in line or "failed" in line else columns + 1 - line.count("|")
                rows.setdefault(line.split("|")[1].strip(), []).append(line.replace("**", "") + "  |" * missing)
    return rows


if __name__ == "__main__":
    main()
