"""Comparison of the networks built here with timm's own, for one model of every timm module.

`measure` builds a model with random weights (and norms as after training), saves them to a file, lets timm load the file, and compares
timm's logits with those of the network that is built from the same file for an export, before maps are added. With `files` it compares
the exported file with Grad-CAM too, run by ONNX Runtime.
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import timm
import torch
from torch import nn

from tlcli.contract.errors import TlcliError, first_line
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.model.onnx_model import Model
from tlcli.exports import export_backbone, published_network
from tlcli.training.data.shapes import draw
from tlcli.training.models.network import CutError, Network, WholeNetwork
from tlcli.training.models.target_layers import resolve_layers
from tlcli.training.settings.config import FinetuneConfig

SMALL = 96
"""Pixels: the input of models that take it, three rows and columns at the end: of fewer values none can be two standard deviations above
their mean, as FEM asks. Others get the size that they were made for."""
CLASSES = 10
"""Models that timm builds without a classifier."""
TOLERANCE = 1e-4
"""Largest difference of logits, relative to the largest logit."""
NOT_RUN = "–"
_IMAGES = 2
_SWITCHED_OFF = 1e-3
_SCALES = (0.3, 0.8)

MODELS = """
vision_transformer=test_vit byobnet=test_byobnet beit=beit_base_patch16_224,depth=2 byoanet=eca_botnext26ts_256 metaformer=poolformerv2_s12
cait=cait_xxs24_224 coat=coat_tiny maxxvit=maxvit_pico_rw_256 convit=convit_tiny convmixer=convmixer_768_32 convnext=test_convnext
cpubone=cpubone_nano crossvit=crossvit_tiny_240 cspnet=cs3darknet_focus_s csatv2=csatv2 cspnext=cspnext_tiny davit=davit_tiny
deepseek_vit=deepseek_vit_412m,depth=1 deit=deit_tiny_patch16_224 deit=deit_tiny_distilled_patch16_224 densenet=densenet121 dla=dla46x_c
nfnet=test_nfnet dpn=dpn48b vovnet=ese_vovnet19b_slim_dw resnet=test_resnet edgenext=edgenext_xx_small efficientformer=efficientformer_l1
efficientformer_v2=efficientformerv2_s0 efficientnet=test_efficientnet efficientvim=efficientvim_m1 efficientvim=efficientvim_m1_dist
efficientvit_mit=efficientvit_b0 efficientvit_msra=efficientvit_m0 eva=eva02_tiny_patch14_224 fasternet=fasternet_t0 fastvit=fastvit_t8
mobilenetv3=mobilenetv3_small_050 focalnet=focalnet_tiny_srf gcvit=gcvit_xxtiny gemma4_vit=gemma4_vit_167m,depth=1 ghostnet=ghostnet_050
mlp_mixer=gmlp_ti16_224 hardcorenas=hardcorenas_b hgnet=hgnetv2_b0 hiera=hiera_tiny_224 hieradet_sam2=hieradet_small hrnet=hrnet_w18_small
iformer=iformer_t inception_next=inception_next_atto inception_resnet_v2=inception_resnet_v2 inception_v3=inception_v3
inception_v4=inception_v4 lcnetv2=lcnetv2_small senet=legacy_seresnet18 xception=legacy_xception levit=levit_128s levit=levit_conv_128s
levit=levit_256d
lowformer=lowformer_b0 mambaout=test_mambaout mobilenetv5=mobilenetv5_base mobilevit=mobilevit_xxs
mvitv2=mvitv2_tiny naflexvit=naflexvit_base_patch16_gap,depth=2 nasnet=nasnetalarge nest=nest_tiny nextvit=nextvit_small pit=pit_ti_224
pit=pit_ti_distilled_224 pnasnet=pnasnet5large pvt_v2=pvt_v2_b0 qwen3_vit=qwen3_vit_88m,depth=2 rdnet=rdnet_tiny regnet=regnetx_002
repghost=repghostnet_050 repvit=repvit_m0_9 res2net=res2next50 resnest=resnest14d resnetv2=resnetv2_18 rexnet=rexnet_100
vision_transformer_sam=samvit_base_patch16_224,depth=2 selecsls=selecsls42 sequencer=sequencer2d_s shvit=shvit_s1 sknet=skresnet18
starnet=starnet_s050 swiftformer=swiftformer_xs swin_transformer=swin_tiny_patch4_window7_224
swin_transformer_v2=swinv2_tiny_window8_256 swin_transformer_v2_cr=swinv2_cr_tiny_224 vision_transformer_relpos=test_vit_relpos
tiny_vit=tiny_vit_5m_224 tnt=tnt_s_patch16_224 tresnet=tresnet_m twins=twins_svt_small vgg=vgg11 visformer=visformer_tiny
vision_transformer_hybrid=vit_tiny_r_s16_p8_224 vitamin=vitamin_small_224 volo=volo_d1_224 xception_aligned=xception41p
xcit=xcit_nano_12_p16_224
""".split()  # noqa: SIM905
"""`module=model`, with arguments of `timm.create_model` behind it where the module has large models only: the smallest of each module."""


def timm_modules() -> list[str]:
    """Return the modules of timm, by name."""
    found = (timm.models.model_entrypoint(name) for name in timm.list_models())
    return sorted({entry.__module__.rsplit(".", 1)[-1] for entry in found if entry.__module__.startswith("timm.")})


def measure(named: str, files: bool) -> str:
    """Measure one entry of `MODELS`.

    Args:
        named: the entry.
        files: compare the exported file too, which takes most of the time.

    Returns:
        A row of the table.
    """
    module, _, rest = named.partition("=")
    name, *pairs = rest.split(",")
    model_kwargs: dict[str, Any] = {key: int(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    shown = " ".join([name, *(f"({pair})" for pair in pairs)])
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size, extra = _save(name, model_kwargs, folder / "weights.safetensors")
        reference = _timms_own(name, {**model_kwargs, **extra}, folder / "weights.safetensors")
        config = FinetuneConfig(backbone=name, weights=str(folder / "weights.safetensors"), model_kwargs=model_kwargs, image_size=size)
        maps, methods = _explained_layer(config)
        network = _cell(lambda: _built(config, reference))
        file = _cell(lambda: _exported(config, reference, methods, folder)) if files else NOT_RUN
    return f"| {module} | {shown} | {size} | {maps} | {network} | {file} |"


def _explained_layer(config: FinetuneConfig) -> tuple[str, tuple[str, ...]]:
    """Return the cell `maps`, and the methods to export."""
    try:
        network = published_network(config)
        (layer,) = resolve_layers(network, None)
    except TlcliError as error:
        return f"refused: {error}", ()
    notes = [f"`{layer.name}`"]
    if isinstance(network, WholeNetwork):
        notes.append("run as a whole")
        try:
            Network(network.config.model_copy(update={"head": "linear"}), network.backbone)
        except CutError:
            notes.append("not fine-tuned")
    return ", ".join(notes), ("gradcam",)


def _cell(compute: Callable[[], float]) -> str:
    try:
        return f"{compute():.1e}"
    except TlcliError as error:
        return f"refused: {error}"
    except Exception as error:  # noqa: BLE001  # a defect of ours or of a library: it goes into the table, the next model is tried
        traceback.print_exc()
        return f"failed: {type(error).__name__}: {first_line(error)}"


def _built(config: FinetuneConfig, reference: nn.Module) -> float:
    network = published_network(config)
    images = _images(network.config.preprocessing.height)
    return _difference(network.predict(images).numpy(), reference, network.config.preprocessing, images)


def _exported(config: FinetuneConfig, reference: nn.Module, methods: tuple[str, ...], folder: Path) -> float:
    exported = export_backbone(config, name="model", repository=folder, methods=methods, check_images=_IMAGES)
    preprocessing = exported.description.preprocessing
    images = _images(preprocessing.height)
    return _difference(Model.open(exported.path, device="cpu").run(images).logits, reference, preprocessing, images)


def _difference(logits: np.ndarray, reference: nn.Module, preprocessing: Preprocessing, images: np.ndarray) -> float:
    mean, std = 255 * torch.tensor(preprocessing.mean), 255 * torch.tensor(preprocessing.std)
    inputs = (torch.from_numpy(images).float() - mean) / std  # rounded as the network does: random weights can amplify rounding
    with torch.no_grad():
        expected = reference(inputs.permute(0, 3, 1, 2)).numpy()
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


def _images(size: int) -> np.ndarray:
    return np.stack([np.asarray(draw(index, 0, size=size).image) for index in range(_IMAGES)])


def _timms_own(name: str, model_kwargs: dict[str, Any], path: Path) -> nn.Module:
    """Return the model of timm, which loads the file itself."""
    overlay: dict[str, Any] = {"file": str(path), "custom_load": False}
    if "num_classes" in model_kwargs:
        overlay["num_classes"] = model_kwargs["num_classes"]
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **model_kwargs).eval()


def _save(name: str, model_kwargs: dict[str, Any], path: Path) -> tuple[int, dict[str, Any]]:
    """Save random weights; return the input's size, and the arguments in addition to the user's."""
    model = timm.create_model(name, **model_kwargs)
    extra: dict[str, Any] = {}
    if not model.num_classes:
        extra = {"num_classes": CLASSES}
        model = timm.create_model(name, **model_kwargs, **extra)
    size = model_kwargs.get("img_size") or input_size(model)
    _look_trained(model)
    safetensors.torch.save_file({key: value.contiguous().clone() for key, value in model.state_dict().items()}, path)
    return size, extra


def input_size(model: nn.Module) -> int:
    """Return the size to measure a model at: `SMALL`, or the one it is made for if it takes no other."""
    made_for = int(model.pretrained_cfg["input_size"][-1])
    if model.pretrained_cfg.get("fixed_input_size") or made_for < SMALL:
        return made_for
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, SMALL, SMALL))
        return SMALL
    except Exception:  # noqa: BLE001  # whatever a network built for one size raises
        return made_for


def _look_trained(model: nn.Module) -> None:
    """Set norms as after training: random scales, shifts and statistics; also the scales of residual branches."""
    for key, parameter in model.named_parameters():
        if not key.endswith("bias") and float(parameter.detach().abs().max()) < _SWITCHED_OFF:
            nn.init.uniform_(parameter, *_SCALES)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            if module.affine:
                module.weight.data.uniform_(*_SCALES)
                module.bias.data.normal_(0, 0.1)
    model.eval()


HEAD = """## Every timm module

One model of each of timm's {modules} modules (the smallest, and one with two heads where a module has such), with random weights, that timm
and tlcli load from the same file: the largest difference of the logits, relative to the largest logit, on {images} images. `network` is
what `tlcli export --backbone` builds, before maps come into it; `file` is the exported file with Grad-CAM in ONNX Runtime (a dash: not
run), which has also passed the export's own check of its maps. `maps` is the layer that is explained by default. A network that cannot
be split into features and a head is run as a whole, and without features that hold a map it is not fine-tuned. Written by
`benchmarks/networks.py --modules`. Arguments in brackets make a large model smaller. Bold: more than {tolerance:g}, or a failure.

{summary}

| module | model | size | maps | network | file |
|---|---|---|---|---|---|
"""


def section(rows: dict[str, str]) -> str:
    """Return the part of the page with the table; rows by entry of `MODELS`."""
    ordered = [_bold(rows[named]) for named in MODELS if named in rows]
    modules = {row.split("|")[1].strip() for row in ordered}
    wrong = [row.split("|")[2].strip() for row in ordered if "**" in row]
    run = {row.split("|")[1].strip() for row in ordered if row.split("|")[6].strip()[:1].isdigit()}
    summary = (
        f"{len(modules)} modules measured: {len(modules) - len(wrong)} right. The files with Grad-CAM of {len(run)} of them have been run."
        if not wrong
        else f"{len(modules)} modules measured; not right: {', '.join(wrong)}."
    )
    head = HEAD.format(modules=len(timm_modules()), images=_IMAGES, tolerance=TOLERANCE, summary=summary)
    return head + "\n".join(ordered) + "\n"


def read(text: str) -> dict[str, str]:
    """Return the rows of a page, by entry of `MODELS`."""
    rows = [line.replace("**", "") for line in text.partition("## Every timm module")[2].splitlines() if line.startswith("| ")]
    named = {}
    for row in rows[1:]:
        _, module, model, *_ = (cell.strip() for cell in row.split("|"))
        named[f"{module}={model.replace(' (', ',').replace(')', '')}"] = row
    return named


def _bold(row: str) -> str:
    cells = row.split("|")
    return "|".join(f" **{cell.strip()}** " if number in (5, 6) and _is_wrong(cell.strip()) else cell for number, cell in enumerate(cells))


def _is_wrong(cell: str) -> bool:
    try:
        return not float(cell) <= TOLERANCE
    except ValueError:
        return cell.startswith("failed")
