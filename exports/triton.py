"""The model's `config.pbtxt`, so that Triton serves the same file (model_config.proto of triton-inference-server)."""

from __future__ import annotations

from contract.description import CLASSES, FEATURES, IMAGES, LOGITS, SCORES, TARGETS, Description

MAX_BATCH_SIZE = 64


def config_pbtxt(description: Description) -> str:
    """The configuration as protobuf text. Triton adds the batch dimension that is left out here.

    `wanted` is left out: it has no batch dimension, and by its default all maps are computed.
    """
    size, labels = description.preprocessing, len(description.labels)
    inputs = [
        _tensor(IMAGES, "TYPE_UINT8", (size.height, size.width, 3)),
        _tensor(TARGETS, "TYPE_INT64", (-1,), optional=True),
    ]
    outputs = [
        _tensor(SCORES, "TYPE_FP32", (labels,)),
        _tensor(LOGITS, "TYPE_FP32", (labels,)),
        _tensor(CLASSES, "TYPE_INT64", (-1,)),
        *(_tensor(output.method, "TYPE_FP32", (-1, output.height, output.width)) for output in description.maps),
    ]
    if description.maps:
        first = description.maps[0]
        outputs.append(_tensor(FEATURES, "TYPE_FP32", (description.feature_channels, first.height, first.width)))
    lines = [
        f'name: "{description.name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {MAX_BATCH_SIZE}",
        "input [\n" + ",\n".join(inputs) + "\n]",
        "output [\n" + ",\n".join(outputs) + "\n]",
        "dynamic_batching { }",
    ]
    return "\n".join(lines) + "\n"


def _tensor(name: str, kind: str, dims: tuple[int, ...], optional: bool = False) -> str:
    text = f'  {{ name: "{name}", data_type: {kind}, dims: [ {", ".join(map(str, dims))} ]'
    return text + (", optional: true }" if optional else " }")
