"""LitServe on an exported model, with the same steps as tlcli's server: `python litserve_server.py MODEL PORT BATCH WORKERS`."""

# Annotations are read by FastAPI: no `from __future__ import annotations` here.

import sys
from pathlib import Path
from typing import Any

import litserve
import numpy as np
from fastapi import UploadFile

sys.path.insert(0, str(Path(__file__).parents[2]))

from tlcli.contract.images import decoding
from tlcli.contract.model.onnx_model import Model
from tlcli.contract.process.cores import usable_cores


class Scores(litserve.LitAPI):
    """LitServe API that decodes, resizes and runs an image, and returns the best five classes."""

    def __init__(self, model: Path, workers: int, **batching: Any) -> None:
        super().__init__(**batching)
        self._path, self._workers = model, workers

    def setup(self, device: str) -> None:
        """Open a session for this worker, with its share of the cores."""
        self._model = Model.open(self._path, "cpu", threads=max(1, usable_cores() // self._workers))

    def decode_request(self, request: UploadFile) -> np.ndarray:
        """Turn an uploaded image into the input of the network."""
        return self._model.description.preprocessing.apply(decoding.decode(request.file.read()))

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        """Stack inputs into a batch."""
        return np.stack(inputs)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        """Split scores by image."""
        return list(output)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Run the graph."""
        return self._model.run(x).scores if x.ndim == 4 else self._model.run(x[None]).scores[0]

    def encode_response(self, output: np.ndarray) -> dict[str, list[float]]:
        """Return the best classes, as tlcli's server does by default."""
        best = np.argsort(-output)[:5]
        return {"classes": best.tolist(), "scores": output[best].tolist()}


if __name__ == "__main__":
    path, port, batch, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    api = Scores(path, workers, max_batch_size=batch, batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")
