"""How far the maps in the graph are from a float64 reference, network by network: writes the table in docs/networks.md.

    python benchmarks/networks.py [--out docs/networks.md] [--pictures FOLDER] [NETWORK[:SIZE] ...]

Each network is built with random weights (and batch-norm statistics and scales that are not the identity, as in a trained one) and
exported twice: with the maps of its last layer, and of the stage or block in the
middle of those it has, in the order of execution. Every method in
the graph is compared, for the first class and for class 3 of each picture, with a reference written from the papers in float64 with
autograd (tests/exports/reference.py): the largest difference over the map's largest value. Pictures are drawn shapes, or those of FOLDER.
A network that cannot be exported has its reason in the table. Rows come as they are done; a row that is there already is kept
unless the network is named.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import timm
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from contract import pictures
from contract.description import Description, Provenance
from contract.errors import TlcliError, first_line
from contract.files import whole_file
from contract.model import Model
from contract.preprocessing import Preprocessing
from exports.explainer import Explainer
from exports.export import describe_explainer
from exports.graph import check_graph, describe, write_graph
from exports.layers import list_layers, resolve_layers
from tests.exports.reference import Reference
from training.network import Network, NetworkConfig, build
from training.shapes import draw

DEFAULT_SIZE = 96
NETWORKS = """
resnet18 resnet50 resnet50d wide_resnet50_2 vgg11_bn vgg16 densenet121 inception_v3:128 inception_v4:128 inception_resnet_v2:128
efficientnet_b0 tf_efficientnetv2_b0 mobilenetv2_100 mobilenetv3_small_100 mobilenetv3_large_100 mobilenetv4_conv_small mnasnet_100
fbnetc_100 lcnet_050 tinynet_e hardcorenas_a regnetx_002 regnety_002 convnext_atto convnextv2_atto resnext50_32x4d seresnet50 legacy_seresnet18
resnest14d dpn68 ghostnet_100 hrnet_w18_small nf_regnet_b0 nfnet_l0 eca_nfnet_l0 repvgg_a0 cspresnet50 cspdarknet53 darknet53 xception41
legacy_xception:128 dla34 res2net50_26w_4s res2next50 rexnet_100 selecsls42b skresnet18 ese_vovnet19b_dw mixnet_s
pnasnet5large:128 nasnetalarge:128 resnetv2_50 resnetv2_50x1_bit resnetrs50 ecaresnet26t gernet_s starnet_s1 edgenext_xx_small
poolformer_s12 convmixer_768_32 fastvit_t8 repghostnet_050 mobileone_s0 inception_next_tiny hgnet_tiny hgnetv2_b0 tresnet_m
bat_resnext26ts halonet26t lambda_resnet26t gcresnext26ts mobilevit_xxs mobilevitv2_050 coatnet_nano_rw_224:224 maxvit_tiny_tf_224:224
focalnet_tiny_srf efficientformer_l1:224 swin_tiny_patch4_window7_224:224 vit_tiny_patch16_224:224
alexnet:128 googlenet squeezenet1_1 shufflenet_v2_x0_5 mnasnet0_5
""".split()
CLASSES = 5
EXPLAINED = (-1, 3)
TOLERANCE = 1e-4
METHODS = ("cam", "gradcam", "gradcam_plus_plus", "xgradcam", "hirescam", "gradcam_elementwise", "layercam", "fem", "ablationcam")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--out", type=Path, default=Path("docs/networks.md"))
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    rows = _read(arguments.out)
    for named in arguments.networks or NETWORKS:
        name, _, size = named.partition(":")
        if name in rows and not arguments.networks:
            continue
        began = time.perf_counter()
        rows[name] = measure(name, int(size or DEFAULT_SIZE), arguments.pictures)
        for row in rows[name]:
            print(row, f"{time.perf_counter() - began:.0f} s", flush=True)
        _write(arguments.out, rows)


def measure(name: str, size: int, folder: Path | None) -> list[str]:
    """One row a layer of a network, or one with the reason why there is none."""
    family = timm.models.model_entrypoint(name).__module__.rsplit(".", 1)[-1]
    preprocessing = Preprocessing(height=size, width=size)
    try:
        network = trained_looking(build(NetworkConfig(backbone=name, head="linear", num_classes=CLASSES, preprocessing=preprocessing)))
        layers = [layer.name for layer in list_layers(network) if layer.name.count(".") <= 1]  # stages and blocks
        last = resolve_layers(network, None)[0].name
    except TlcliError as error:
        return [f"| {name} | {family} | {size} | | not exported: {error} |"]
    images = np.stack(_images(preprocessing, folder))
    rows = []
    for where, layer in (("last", last), ("middle", layers[len(layers) // 2])):
        head = f"| {name} | {family} | {size} | {where}: `{layer}` |"
        try:
            differences = compare(network, layer, images)
            rows.append(head + " " + " | ".join(f"{differences[key]:.0e}" if key in differences else "–" for key in ("logits", *METHODS)) + " |")
        except TlcliError as error:
            rows.append(f"{head} not exported: {error} |")
        except Exception as error:  # a defect of ours or of a library: it goes into the table, the next network is tried
            traceback.print_exc()
            rows.append(f"{head} failed: {type(error).__name__}: {first_line(error)} |")
    return rows


def compare(network: Network, layer: str, images: np.ndarray) -> dict[str, float]:
    """The largest relative difference of the logits and of each method's maps."""
    with tempfile.TemporaryDirectory() as folder:
        explainer = Explainer(network, None, [layer])
        path = Path(folder) / "model.onnx"
        write_graph(explainer, path)
        describe(path, _description(explainer))
        check_graph(path)
        model = Model.open(path, device="cpu")
        answer = model.run(images, EXPLAINED, model.description.graph_maps)
    reference = Reference(network, layer)
    assert answer.classes is not None
    logits = reference.observe(images, answer.classes)[0].numpy()
    differences = {"logits": float(np.abs(answer.logits - logits).max() / np.abs(logits).max())}
    for method, values in answer.maps.items():
        expected = reference.maps(method, images, answer.classes)
        apart, largest = np.abs(values - expected).max((-2, -1)), np.abs(expected).max((-2, -1))
        differences[method] = float((apart / np.maximum(largest, max(largest.max() * 1e-3, 1e-30))).max())
    return differences


def trained_looking(network: Network) -> Network:
    """Random statistics and scales in every batch norm: with the initial ones some branches are switched off."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
    return network.requires_grad_(False)


def _description(explainer: Explainer) -> Description:
    provenance = Provenance(created="", versions={}, backbone="", head="linear", weights="none")
    return describe_explainer(explainer, "model", [f"class_{number}" for number in range(CLASSES)], provenance)


def _images(preprocessing: Preprocessing, folder: Path | None) -> list[np.ndarray]:
    if folder is None:
        return [np.asarray(draw(index, 0, size=preprocessing.height).image) for index in range(1)]
    found = pictures.find([folder])
    return [preprocessing.apply(pictures.read(found[0]))]


HEAD = """# Networks

How far the maps in the exported graph are from a float64 autograd reference that is written from the papers: the largest difference over
the map's largest value. Written by `benchmarks/networks.py`; random weights, a picture, two classes, on ONNX Runtime on a CPU.
`size` is the input's height and width in pixels. The layer is the last one with a spatial extent, and the stage or block in the
middle of those that have one, in the order of execution. A dash: the method is not defined there (CAM, where the head is not one linear layer on the
spatial mean). Bold: more than {tolerance:g}.

{summary}

| network | family | size | layer | logits | {methods} |
|---|---|---|---|---|{rule}
"""


def _write(path: Path, rows: dict[str, list[str]]) -> None:
    lines = [_bold(row) for name in rows for row in rows[name]]
    good = {name for name in rows if len(rows[name]) == 2 and not any("not exported" in row or "failed" in row for row in rows[name])}
    within = {name for name in good if not any("**" in _bold(row) for row in rows[name])}
    families = {row.split("|")[2].strip() for name in within for row in rows[name]}
    summary = f"{len(rows)} networks tried: {len(good)} exported at both layers, {len(within)} of them, of {len(families)} families, within {TOLERANCE:g}."
    head = HEAD.format(tolerance=TOLERANCE, summary=summary, methods=" | ".join(METHODS), rule="---|" * len(METHODS))
    with whole_file(path) as temporary:
        temporary.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


def _bold(row: str) -> str:
    cells = row.split("|")
    return "|".join(f" **{cell.strip()}** " if 5 <= number and _exceeds(cell) else cell for number, cell in enumerate(cells))


def _exceeds(cell: str) -> bool:
    try:
        return not float(cell) <= TOLERANCE
    except ValueError:
        return False


def _read(path: Path) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("| ") and not line.startswith("| network"):
                rows.setdefault(line.split("|")[1].strip(), []).append(line.replace("**", ""))
    return rows


if __name__ == "__main__":
    main()
