"""Client for a model on Triton that prints classes and maps: python ask_triton.py HOST:PORT MODEL IMAGE

Needs tritonclient, numpy and Pillow, but not tlcli.
"""

import json
import sys

import numpy as np
import tritonclient.grpc as triton
from PIL import Image

address, model, image = sys.argv[1:]
with triton.InferenceServerClient(address) as client:
    config = client.get_model_config(model).config
    description = json.loads(config.parameters["tlcli.description"].string_value)
    labels, size, switches = description["labels"], description["preprocessing"], description["switches"]

    pixels = np.array(Image.open(image).convert("RGB").resize((size["width"], size["height"])), dtype=np.uint8)
    tensors = {
        "images": (pixels[None], "UINT8"),  # [N, H, W, 3]
        "targets": (np.array([[-1, -2]], dtype=np.int64), "INT64"),  # the two top-ranked classes
        "wanted": (np.array([[name == "gradcam" for name in switches]]), "BOOL"),  # nothing else is computed
    }
    inputs = []
    for name, (values, kind) in tensors.items():
        inputs.append(triton.InferInput(name, values.shape, kind))
        inputs[-1].set_data_from_numpy(values)
    outputs = [triton.InferRequestedOutput(name) for name in ("scores", "classes", "gradcam")]
    answer = client.infer(model, inputs, outputs=outputs)

    scores, classes, maps = (answer.as_numpy(name)[0] for name in ("scores", "classes", "gradcam"))
    for class_id, values in zip(classes, maps, strict=True):
        row, column = np.unravel_index(values.argmax(), values.shape)
        rows, columns = values.shape
        print(f"{labels[class_id]}: {scores[class_id]:.3f}, for what is at row {row}, column {column} of {rows} x {columns}")
