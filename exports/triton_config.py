"""Triton model configurations for the exported file (model_config.proto of triton-inference-server).

Triton's ONNX Runtime backend treats an input with a default in the graph as optional. It rejects models that combine optional inputs with
request batching (`max_batch_size` above 0), because merged requests would share one tensor although each may send its own. Therefore there
are two configurations:

- `config.pbtxt` lists all inputs and outputs of the graph. The images of one request form a batch; requests are not merged.
- `configs/batching.pbtxt` (`tritonserver --model-config-name=batching`) lists `images` and the outputs that are computed by default,
  except for gradients. Triton merges requests along the first dimension.

A plain graph has no optional inputs, and a single `config.pbtxt` with which Triton merges requests that have maps.

All contain the description as a parameter, which the backend ignores and clients can read: labels, preprocessing, and the order of
`wanted`.
"""

from __future__ import annotations

from google.protobuf import text_encoding

from tlcli.contract.maps.method_names import COSTLY
from tlcli.contract.model.description import CLASSES, IMAGES, LOGITS, METADATA_KEY, SCORES, SOFTMAX, TARGETS, WANTED, Description, Plain

CONFIG_FILE = "config.pbtxt"
BATCHING_FILE = "configs/batching.pbtxt"
MAX_BATCH_SIZE = 64
"""Maximum batch size for Triton: the number of images that it merges into one run."""


def triton_files(description: Description) -> dict[str, str]:
    """Return the text of each configuration file by its path in the model's folder."""
    if description.plain is not None:
        return {CONFIG_FILE: plain_pbtxt(description, description.plain)}
    return {CONFIG_FILE: config_pbtxt(description), BATCHING_FILE: batching_pbtxt(description)}


def plain_pbtxt(description: Description, plain: Plain) -> str:
    """Return the configuration of a plain graph as protobuf text.

    Its inputs are required, so Triton merges requests that have maps. With a fixed batch size, a request has exactly that many images.
    """
    batch = () if plain.batch is None else (plain.batch,)
    classes = 1 if plain.classes == "top" else plain.explained or -1
    inputs = [_images(description, batch)]
    if plain.classes == "input":
        inputs.append(_tensor(TARGETS, "TYPE_INT64", (*batch, classes)))
    outputs = []
    for name, kind, shape in _outputs(description):
        if name not in (SCORES, LOGITS):
            shape = (classes, *shape[1:])
        outputs.append(_tensor(name, kind, (*batch, *shape)))
    if plain.batch is not None:
        return _config(description, 0, inputs, outputs)
    return _config(description, MAX_BATCH_SIZE, inputs, outputs) + "dynamic_batching { }\n"


def config_pbtxt(description: Description) -> str:
    """Return the configuration with all inputs and outputs as protobuf text. Shapes include the batch dimension."""
    inputs = [_images(description), _tensor(TARGETS, "TYPE_INT64", (-1, -1), optional=True)]
    if description.layers:
        inputs.append(_tensor(SOFTMAX, "TYPE_BOOL", (-1, 1), optional=True))
        inputs.append(_tensor(WANTED, "TYPE_BOOL", (-1, len(description.switches)), optional=True))
    return _config(description, 0, inputs, [_tensor(name, kind, (-1, *shape)) for name, kind, shape in _outputs(description)])


def batching_pbtxt(description: Description) -> str:
    """Return the configuration for request batching as protobuf text: `images`, and the default outputs except for gradients.

    Shapes omit the batch dimension, which Triton adds.
    """
    expensive = {output.name for output in description.maps if output.method in COSTLY}
    excluded = expensive | {layer.gradients for layer in description.layers}
    outputs = [_tensor(name, kind, shape) for name, kind, shape in _outputs(description) if name not in excluded]
    return _config(description, MAX_BATCH_SIZE, [_images(description, batch=())], outputs) + "dynamic_batching { }\n"


def _outputs(description: Description) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return the name, data type, and per-image shape of each output."""
    labels = len(description.labels)
    outputs: list[tuple[str, str, tuple[int, ...]]] = [
        (SCORES, "TYPE_FP32", (labels,)),
        (LOGITS, "TYPE_FP32", (labels,)),
        (CLASSES, "TYPE_INT64", (-1,)),
        *(
            (output.name, "TYPE_FP32", (-1, *_extent(description, output.height, output.width)))
            for output in description.maps
            if output.in_graph
        ),
    ]
    for layer in description.layers if description.plain is None else ():
        shape = (layer.channels, *_extent(description, layer.height, layer.width))
        outputs += [(layer.features, "TYPE_FP32", shape), (layer.gradients, "TYPE_FP32", (-1, *shape))]
    return outputs


def _images(description: Description, batch: tuple[int, ...] = (-1,)) -> str:
    size = description.preprocessing
    return _tensor(IMAGES, "TYPE_UINT8", (*batch, *_extent(description, size.height, size.width), 3))


def _config(description: Description, max_batch_size: int, inputs: list[str], outputs: list[str]) -> str:
    lines = [
        f'name: "{description.name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {max_batch_size}",
        "input [\n" + ",\n".join(inputs) + "\n]",
        "output [\n" + ",\n".join(outputs) + "\n]",
        f'parameters {{ key: "{METADATA_KEY}" value {{ string_value: "{_escaped(description.to_json())}" }} }}',
    ]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """Escape a string for protobuf text format, in ASCII."""
    return text_encoding.CEscape(text.encode(), as_utf8=False)


def _extent(description: Description, height: int, width: int) -> tuple[int, int]:
    return (-1, -1) if description.dynamic_size else (height, width)


def _tensor(name: str, kind: str, dims: tuple[int, ...], optional: bool = False) -> str:
    text = f'  {{ name: "{name}", data_type: {kind}, dims: [ {", ".join(map(str, dims))} ]'
    return text + (", optional: true }" if optional else " }")
