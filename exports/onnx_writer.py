"""Writer of an explainer's ONNX file, by PyTorch's exporter and the passes of `tlcli.exports.rewrite`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch

from tlcli.contract.errors import ExportError, first_line
from tlcli.contract.files.atomic_file import named_errors
from tlcli.contract.maps.method_names import OF_ATTENTION
from tlcli.contract.model.description import IMAGES, SOFTMAX, TARGETS, MapOutput, Plain
from tlcli.contract.model.onnx_model import FIRST_RANKED
from tlcli.contract.process.quiet import quiet
from tlcli.exports.rewrite import closed_graph
from tlcli.exports.rewrite.ablation_loop import CHANNELS_PER_STEP, ablated_input, due_input
from tlcli.exports.rewrite.closed_graph import IR_VERSION, OPSET, GraphLayout
from tlcli.exports.rewrite.masking_loop import masking_loop
from tlcli.exports.rewrite.pair_loop import PAIRS_PER_STEP
from tlcli.exports.rewrite.plain_graph import LinearAblation
from tlcli.exports.rewrite.symbolic_sizes import take_sizes_from
from tlcli.exports.rewrite.target_choice import COTANGENTS
from tlcli.exports.trace.decompose_nodes import decomposed_by_nodes
from tlcli.exports.trace.explainer import Explainer, is_pooled_linear
from tlcli.exports.trace.map_methods import NEEDS_ABLATION, NEEDS_DIFFERENCE, NEEDS_MASKING
from tlcli.training.models.target_layers import resolve_layers

_MAX_PROTOBUF_BYTES = 2**31 - 1


def write_graph(explainer: Explainer, path: Path, flat: onnx.ModelProto | None = None, plain: Plain | None = None) -> None:
    """Write the graph to a file, without the description.

    Args:
        explainer: network with its maps.
        path: path of the file to write.
        flat: result of `flat_graph` for this explainer, to reuse it; it is not modified. None exports it again.
        plain: form of a plain graph; None writes the graph with optional inputs.

    Raises:
        ExportError: see `flat_graph` and `tlcli.exports.rewrite.plain_graph.make_plain`.
    """
    if flat is None:
        model = flat_graph(explainer)
    else:
        model = onnx.ModelProto()
        model.CopyFrom(flat)
    if plain is None:
        close_graph(explainer, model)
    else:
        close_plain_graph(explainer, model, plain)
    onnx.save(model, str(path))


def flat_graph(explainer: Explainer) -> onnx.ModelProto:
    """Export the explainer with PyTorch's exporter.

    The result is a flat graph: it has no branches yet, and still has the extra inputs and outputs that `close_graph` removes.

    Raises:
        ExportError: PyTorch's exporter does not support an operator of the network, or the file would exceed 2 GiB.
    """
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in explainer.network.parameters())
    if parameters >= _MAX_PROTOBUF_BYTES:
        raise ExportError(
            f"the network has {parameters:,} bytes of weights; one ONNX file holds at most {_MAX_PROTOBUF_BYTES:,}: use a smaller backbone"
        )
    with tempfile.TemporaryDirectory() as folder, named_errors(Path(folder)):
        path = Path(folder) / "flat.onnx"
        _write_flat(explainer, path)
        model = onnx.load(str(path))
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{index}"
        # These fields hold source paths of this machine for each node: private, and a megabyte of each session's memory.
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    model.graph.ClearField("metadata_props")
    if explainer.layers:
        take_sizes_from(model.graph, COTANGENTS, {0: (IMAGES, 0), 1: (TARGETS, 1)})
        for number in range(len(explainer.layers)):
            for value in (ablated_input(number), masking_loop(number).result):
                take_sizes_from(model.graph, value, {0: (IMAGES, 0), 2: (TARGETS, 1)})
    return model


def close_graph(explainer: Explainer, model: onnx.ModelProto) -> None:
    """Replace the extra inputs and outputs of a flat graph with branches and loops, in place."""
    closed_graph.close_graph(_layout(explainer), model)


def _layout(explainer: Explainer) -> GraphLayout:
    return GraphLayout(
        preprocessing=explainer.network.config.preprocessing,
        num_classes=explainer.network.config.num_classes,
        layers=explainer.layers,
        maps=explainer.maps,
        switches=explainer.switches,
        dynamic_size=explainer.dynamic_size,
        masks_in_loop=explainer.masks_in_loop,
    )


def close_plain_graph(explainer: Explainer, model: onnx.ModelProto, plain: Plain) -> None:
    """Turn a flat graph into a plain graph, in place."""
    maps = [output.name for output in plain_maps(explainer)]
    ablations = [LinearAblation(0, explainer.layers[0].features)] if has_linear_ablation(explainer) else []
    closed_graph.close_plain_graph(_layout(explainer), model, plain, maps, ablations)


def plain_maps(explainer: Explainer) -> tuple[MapOutput, ...]:
    """Return the maps of the explainer that a plain graph computes: those in the graph that need no loop and no gradient of their own."""
    others = NEEDS_MASKING | NEEDS_DIFFERENCE | {*OF_ATTENTION}
    if not has_linear_ablation(explainer):
        others |= NEEDS_ABLATION
    return tuple(output for output in explainer.maps if output.in_graph and output.method not in others)


def has_linear_ablation(explainer: Explainer) -> bool:
    """Return True if the explainer computes Ablation-CAM, and has a closed form for it."""
    if not explainer.looped or len(explainer.layers) != 1:
        return False
    return is_pooled_linear(explainer.network, *resolve_layers(explainer.network, [explainer.layers[0].name]))


def _write_flat(explainer: Explainer, path: Path) -> None:
    size = explainer.network.config.preprocessing
    dynamic, auto = torch.export.Dim.DYNAMIC, torch.export.Dim.AUTO
    sizes = {0: auto, 1: dynamic, 2: dynamic} if explainer.dynamic_size else {0: auto}
    inputs: dict[str, tuple[Any, Any]] = {  # an example and the dynamic dimensions of each input
        IMAGES: (torch.zeros(3, size.height, size.width, 3, dtype=torch.uint8), sizes),
        TARGETS: (torch.tensor([[FIRST_RANKED, 0], [0, FIRST_RANKED]]), {0: dynamic, 1: auto}),
    }
    names = list(inputs)
    if explainer.layers:
        looped = explainer.layers if explainer.looped else ()
        masked = explainer.layers if explainer.masks_in_loop else ()
        inputs |= {
            SOFTMAX: (torch.zeros(2, 1, dtype=torch.bool), {0: dynamic}),
            COTANGENTS: (torch.zeros(3, 2, explainer.last_layer.width), {0: auto, 1: auto}),
            "due": ([torch.arange(CHANNELS_PER_STEP) for _ in looped], [None for _ in looped]),
            "ablated": ([torch.zeros(3, layer.channels, 2) for layer in looped], [{0: auto, 2: auto} for _ in looped]),
            "due_masks": ([torch.arange(PAIRS_PER_STEP) for _ in masked], [None for _ in masked]),
            "masked": (
                [torch.zeros(3, layer.height * layer.width, 2) for layer in masked],
                [{0: auto, 1: auto, 2: auto} if explainer.dynamic_size else {0: auto, 2: auto} for _ in masked],
            ),
        }
        loops = [masking_loop(number) for number in range(len(masked))]
        names += [SOFTMAX, COTANGENTS, *map(due_input, range(len(looped))), *map(ablated_input, range(len(looped)))]
        names += [*(loop.due for loop in loops), *(loop.result for loop in loops)]
    export = partial(
        torch.onnx.export,
        explainer,
        tuple(example for example, _ in inputs.values()),
        dynamo=True,
        input_names=names,
        output_names=list(explainer.outputs),
        dynamic_shapes=tuple(dimensions for _, dimensions in inputs.values()),
        opset_version=OPSET,
        verbose=False,
        optimize=False,
    )
    try:
        program = decomposed_by_nodes_if_possible(export)
    except torch.onnx.errors.OnnxExporterError as error:
        reason = _cause(error)
        if explainer.dynamic_size:
            reason += "; the network may need images of one size: leave out --dynamic-size"
        raise ExportError(f"{explainer.network.config.backbone} cannot be exported to ONNX: {reason}") from error
    if program is None:
        raise ExportError(f"PyTorch's exporter returned no graph for {explainer.network.config.backbone}: use another backbone")
    program.model.ir_version = IR_VERSION
    _optimize(program)
    program.save(str(path))


def decomposed_by_nodes_if_possible(export: Callable[[], torch.onnx.ONNXProgram | None]) -> torch.onnx.ONNXProgram | None:
    """Run PyTorch's exporter, a second time with its own decompositions if it does not support what `decompose_nodes` leaves."""
    with quiet("torch.onnx"):
        with decomposed_by_nodes() as changed:
            try:
                return export()
            except torch.onnx.errors.OnnxExporterError:
                if not changed:
                    raise
        return export()


def _optimize(program: torch.onnx.ONNXProgram) -> None:
    """Optimize the graph as PyTorch's exporter does, after the constants are folded and equal nodes merged.

    One of the exporter's rewrite rules visits all nodes for each node, and two thirds of them are constants and shape computations that
    fold: for a vision transformer of 6 blocks, 5231 nodes become 1444, and the optimization takes 4 s instead of 17 s.
    """
    from onnx_ir.passes import common
    from onnxscript import optimizer

    with quiet("torch.onnx"):
        optimizer.fold_constants(program.model)
        for simplify in (
            common.RemoveUnusedNodesPass(),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.DeduplicateInitializersPass(),
            common.CommonSubexpressionEliminationPass(),
            common.RemoveUnusedNodesPass(),
        ):
            simplify(program.model)
        program.optimize()


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
