"""The model's `config.pbtxt`, so that Triton serves the same file (model_config.proto of triton-inference-server)."""

from __future__ import annotations

from contract.description import CLASSES, IMAGES, LOGITS, SCORES, SOFTMAX, TARGETS, WANTED, Description

MAX_BATCH_SIZE = 64


def config_pbtxt(description: Description) -> str:
    """The configuration as protobuf text. Triton adds the batch dimension that is left out here."""
    size, labels = description.preprocessing, len(description.labels)
    inputs = [
        _tensor(IMAGES, "TYPE_UINT8", (*_extent(description, size.height, size.width), 3)),
        _tensor(TARGETS, "TYPE_INT64", (-1,), optional=True),
    ]
    if description.layers:
        inputs.append(_tensor(SOFTMAX, "TYPE_BOOL", (1,), optional=True))
        inputs.append(_tensor(WANTED, "TYPE_BOOL", (len(description.switches),), optional=True))
    outputs = [
        _tensor(SCORES, "TYPE_FP32", (labels,)),
        _tensor(LOGITS, "TYPE_FP32", (labels,)),
        _tensor(CLASSES, "TYPE_INT64", (-1,)),
        *(_tensor(one.name, "TYPE_FP32", (-1, *_extent(description, one.height, one.width))) for one in description.maps if one.in_graph),
    ]
    for layer in description.layers:
        shape = (layer.channels, *_extent(description, layer.height, layer.width))
        outputs += [_tensor(layer.features, "TYPE_FP32", shape), _tensor(layer.gradients, "TYPE_FP32", (-1, *shape))]
    lines = [
        f'name: "{description.name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {MAX_BATCH_SIZE}",
        "input [\n" + ",\n".join(inputs) + "\n]",
        "output [\n" + ",\n".join(outputs) + "\n]",
        "dynamic_batching { }",
    ]
    return "\n".join(lines) + "\n"


def _extent(description: Description, height: int, width: int) -> tuple[int, int]:
    return (-1, -1) if description.dynamic_size else (height, width)


def _tensor(name: str, kind: str, dims: tuple[int, ...], optional: bool = False) -> str:
    text = f'  {{ name: "{name}", data_type: {kind}, dims: [ {", ".join(map(str, dims))} ]'
    return text + (", optional: true }" if optional else " }")
