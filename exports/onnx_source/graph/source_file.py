"""Reader of a foreign ONNX file: it checks the file, inlines its functions, and upgrades it to a current opset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.external_data_helper
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from tlcli.contract.errors import ExportError, ModelFileError, NotFoundError, first_line
from tlcli.contract.model.description import METADATA_KEY
from tlcli.exports.onnx_source.graph.node_order import sort_nodes
from tlcli.exports.onnx_source.graph.opset_upgrade import OLDEST_OPSET, upgrade
from tlcli.exports.rewrite.closed_graph import IR_VERSION, OPSET
from tlcli.exports.rewrite.graph_edit import rename, replace_nodes

PREFIX = "source/"
"""Prefix of the names of the file's values in the exported file."""

_IMAGE_TYPES = (TensorProto.FLOAT, TensorProto.UINT8)
_MAX_PROTOBUF_BYTES = 2**31 - 1
_SCIKIT_LEARN = frozenset(
    {
        "LinearClassifier",
        "TreeEnsembleClassifier",
        "SVMClassifier",
        "LinearRegressor",
        "TreeEnsembleRegressor",
        "TreeEnsemble",
        "Scaler",
        "Normalizer",
    }
)
_COMPOUND = frozenset(
    {
        "Attention",
        "CastLike",
        "MeanVarianceNormalization",
        "RMSNormalization",
        "ReduceL1",
        "ReduceLogSum",
        "Shrink",
    }
)


@dataclass(frozen=True)
class SourceFile:
    """Foreign ONNX file, ready for analysis.

    path: path of the file.
    model: model of opset 20 or newer, without local functions, `Constant` operators, or weights among its inputs.
    input: name of the input for images.
    input_type: `TensorProto.FLOAT` or `TensorProto.UINT8`.
    shape: four sizes of the input as declared; None for a symbolic size.
    properties: metadata of the file.
    """

    path: Path
    model: ModelProto
    input: str
    input_type: int
    shape: tuple[int | None, ...]
    properties: dict[str, str]


def read_source(path: Path) -> SourceFile:
    """Read a foreign ONNX file.

    Raises:
        NotFoundError: the file does not exist.
        ModelFileError: the file is not an ONNX model, its weights are missing, or it was exported by tlcli.
        ExportError: the model is not an image classifier, or uses unsupported features of ONNX.
    """
    model = _load(path)
    if any(entry.key == METADATA_KEY for entry in model.metadata_props):
        raise ModelFileError(f"{path}: already exported by tlcli: serve it as it is")
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    graph = model.graph
    sort_nodes(graph)
    if any(node.op_type in _SCIKIT_LEARN and node.domain == "ai.onnx.ml" for node in graph.node):
        raise ExportError(f"{path}: a model for tabular data (scikit-learn style), not an image classifier: it has no maps")
    _move_constants(model)
    if not any(opset.domain in ("", "ai.onnx") for opset in model.opset_import):
        raise ExportError(f"{path}: it uses no standard ONNX operators: export it again with standard operators")
    name, kind, shape = _image_input(path, model)
    version = next(opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx"))
    if version < OLDEST_OPSET:
        raise ExportError(f"{path}: opset {version} is too old: export it again with opset {OLDEST_OPSET} or newer")
    _require_known_opset(path, version)
    if version < OPSET:
        try:
            upgrade(model, version, OPSET)
        except NotImplementedError as error:
            raise ExportError(f"{path}: opset {version}: {error}: export it again with opset {OPSET}") from error
    model = _inline_compound(model)
    graph = model.graph
    model.ir_version = needed_ir_version(model)
    for number, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    properties = {entry.key: entry.value for entry in model.metadata_props}
    del graph.value_info[:], graph.metadata_props[:], model.metadata_props[:], model.functions[:]
    _add_prefix(graph)
    return SourceFile(path, model, f"{PREFIX}{name}", kind, shape, properties)


def needed_ir_version(model: ModelProto) -> int:
    """Return the IR version that a model's operators need. Converters write the newest, which ONNX Runtime may not load yet."""
    return max(IR_VERSION, helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True))


def _require_known_opset(path: Path, version: int) -> None:
    if not _is_accepted(version):
        import onnxruntime

        newest = next(older for older in range(version - 1, OPSET - 1, -1) if older <= OPSET or _is_accepted(older))
        raise ExportError(
            f"{path}: opset {version} is newer than ONNX Runtime {onnxruntime.__version__} accepts ({newest}): export it again with opset"
            f" {newest}, or install a newer onnxruntime"
        )


def _is_accepted(version: int) -> bool:
    """Return True if ONNX Runtime loads a model of an opset."""
    if version <= OPSET:
        return True
    import onnxruntime

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [result])
    opsets = [helper.make_opsetid("", version)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets, ignore_unknown=True))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001 - ONNX Runtime's exceptions share no base class
        return False
    return True


def _inline_compound(model: ModelProto) -> ModelProto:
    """Replace operators that ONNX defines by other operators, and that have no gradient rule, by these."""
    used = {node.op_type for node in model.graph.node if node.domain in ("", "ai.onnx")}
    if used.isdisjoint(_COMPOUND):
        return model
    weights = model.graph.initializer
    model.graph.value_info.extend(helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims) for weight in weights)
    model = onnx.inliner.inline_selected_functions(model, [("", name) for name in sorted(_COMPOUND)], inline_schema_functions=True)
    _move_constants(model)
    return model


def _add_prefix(graph: GraphProto) -> None:
    """Add `PREFIX` to the names of all values of the main graph, so that they do not collide with those of the exported file."""
    values: list[ValueInfoProto | TensorProto] = [*graph.input, *graph.output, *graph.initializer]
    names = {value.name for value in values} | {name for node in graph.node for name in node.output if name}
    prefixed = {name: f"{PREFIX}{name}" for name in names}
    for node in graph.node:
        rename(node, prefixed)
    for value in values:
        value.name = prefixed[value.name]


def shown(value: str) -> str:
    """Return the name that a value has in the file."""
    return value.removeprefix(PREFIX)


def _load(path: Path) -> ModelProto:
    if not path.is_file():
        problem = "a folder: give the ONNX file in it" if path.is_dir() else "no such file"
        raise NotFoundError(f"{path}: {problem}")
    if path.stat().st_size > _MAX_PROTOBUF_BYTES:
        raise ModelFileError(f"{path}: {path.stat().st_size:,} bytes; an ONNX file holds at most {_MAX_PROTOBUF_BYTES:,}")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise ModelFileError(f"{path}: not an ONNX file: expected a model in ONNX's protobuf format") from error
    if not model.graph.node or not model.graph.output:
        raise ModelFileError(f"{path}: not an ONNX model: it contains no graph")
    try:
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelFileError(
            f"{path}: its weights are in another file that cannot be read ({first_line(error)}): copy that file next to it"
        ) from error
    if sum(len(weight.raw_data) for weight in model.graph.initializer) >= _MAX_PROTOBUF_BYTES // 2:
        raise ExportError(f"{path}: contains more than 1 GiB of weights: use a smaller network")
    return model


def _move_constants(model: ModelProto) -> None:
    """Turn `Constant` operators into initializers, and remove initializers from the inputs, where files of old IR versions list them."""
    graph = model.graph
    kept: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            graph.initializer.append(numpy_helper.from_array(constant_value(node), node.output[0]))
        else:
            kept.append(node)
    replace_nodes(graph, kept)
    weights = {weight.name for weight in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(inputs)


def constant_value(node: NodeProto) -> np.ndarray:
    """Return the value of a `Constant` operator.

    Raises:
        ExportError: the value is a string or a sparse tensor.
    """
    (attribute,) = node.attribute
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return numpy_helper.to_array(value)
    if attribute.name in ("value_float", "value_floats"):
        return np.array(value, dtype=np.float32)
    if attribute.name in ("value_int", "value_ints"):
        return np.array(value, dtype=np.int64)
    raise ExportError(f"the constant {node.output[0]} is a {attribute.name.removeprefix('value_')}: only numbers are supported")


def _image_input(path: Path, model: ModelProto) -> tuple[str, int, tuple[int | None, ...]]:
    if len(model.graph.input) != 1:
        names = ", ".join(value.name for value in model.graph.input) or "none"
        raise ExportError(f"{path}: expected one input with images, but its inputs are: {names}")
    (value,) = model.graph.input
    tensor = value.type.tensor_type
    kind = TensorProto.DataType.Name(tensor.elem_type).lower()
    if tensor.elem_type == TensorProto.STRING:
        raise ExportError(f"{path}: its input {value.name} takes strings, not images: it is not an image classifier")
    shape = tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in tensor.shape.dim)
    if len(shape) != 4:
        raise ExportError(f"{path}: its input {value.name} has the shape {_text(shape)}, not that of images [N, 3, H, W] or [N, H, W, 3]")
    if tensor.elem_type not in _IMAGE_TYPES:
        raise ExportError(f"{path}: its input {value.name} is {kind}: expected float32 or uint8; export the network in float32")
    return value.name, tensor.elem_type, shape


def _text(shape: Sequence[int | None]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"
