"""Substitute for Triton's ONNX Runtime backend, which no package provides: a Python backend that handles requests in the same way."""

import json

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    """Version of a model."""

    def initialize(self, given: dict[str, str]) -> None:
        config = json.loads(given["model_config"])
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(f"{given['model_repository']}/{given['model_version']}/model.onnx", options)
        self.merges = config["max_batch_size"] > 0
        self.outputs = [one["name"] for one in config["output"]]

    def execute(self, requests: list) -> list:
        groups = [requests] if self.merges else [[request] for request in requests]
        return [response for group in groups for response in self.answer(group)]

    def answer(self, requests: list) -> list:
        """Run the requests as one batch: concatenate the inputs, and split the outputs along their first dimension."""
        print(f"a run of {len(requests)} requests", flush=True)
        names = [one.name() for one in requests[0].inputs()]
        given = [{name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in names} for request in requests]
        feed = {name: np.concatenate([one[name] for one in given]) for name in names}
        answers = dict(zip(self.outputs, self.session.run(self.outputs, feed), strict=True))
        responses, start = [], 0
        for request, one in zip(requests, given, strict=True):
            stop = start + len(one["images"])
            cut = slice(start, stop) if self.merges else slice(None)
            tensors = [triton.Tensor(name, np.ascontiguousarray(answers[name][cut])) for name in request.requested_output_names()]
            responses.append(triton.InferenceResponse(output_tensors=tensors))
            start = stop
        return responses
