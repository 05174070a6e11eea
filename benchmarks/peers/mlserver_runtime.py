"""MLServer runtime for an exported model, with the same steps as tlcli's server."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

sys.path.insert(0, str(Path(__file__).parents[2]))

from tlcli.contract.images import decoding
from tlcli.contract.model.onnx_model import Model


class Scores(MLModel):
    """MLServer runtime that decodes, resizes and runs images, and returns scores."""

    async def load(self) -> bool:
        """Open the file that `model-settings.json` names."""
        parameters = self.settings.parameters
        assert parameters is not None
        self._model = Model.open(parameters.uri, "cpu")
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer the images of one request, or of a batch assembled by MLServer."""
        encoded = [bytes(one, "latin-1") if isinstance(one, str) else bytes(one) for one in payload.inputs[0].data.root]
        images = np.stack([self._model.description.preprocessing.apply(decoding.decode(one)) for one in encoded])
        scores = self._model.run(images).scores
        output = ResponseOutput(name="scores", shape=list(scores.shape), datatype="FP32", data=scores.ravel().tolist())
        return InferenceResponse(model_name=self.name, outputs=[output])
