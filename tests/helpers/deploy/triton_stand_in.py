"""Fake Triton server: its protocol, and its checks of a request by the model's configuration."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype


class StandIn(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Server of a model repository without batching.

    asked: names of the inputs and outputs of each request.
    """

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self.asked: list[tuple[set[str], set[str]]] = []

    def _config(self, model: str) -> Any:
        return text_format.Parse((self._repository / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())

    def ModelConfig(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return service_pb2.ModelConfigResponse(config=self._config(request.name))

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        config = self._config(request.model_name)
        declared = {one.name: one for one in config.input}
        feed = {}
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            one = declared.get(tensor.name)
            if one is None:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"unexpected inference input '{tensor.name}'")
            if model_config_pb2.DataType.Name(one.data_type) != f"TYPE_{tensor.datatype}":
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"inference input '{tensor.name}' data-type is '{tensor.datatype}'")
            if len(one.dims) != len(tensor.shape) or any(a not in (-1, b) for a, b in zip(one.dims, tensor.shape, strict=True)):
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"unexpected shape for input '{tensor.name}'")
            feed[tensor.name] = np.frombuffer(raw, triton_to_np_dtype(tensor.datatype)).reshape(tensor.shape)
        if missing := {one.name for one in config.input if not one.optional} - feed.keys():
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"missing required inputs {sorted(missing)}")
        outputs = [one.name for one in request.outputs]
        if unknown := set(outputs) - {one.name for one in config.output}:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"unexpected inference output {sorted(unknown)}")
        self.asked.append((set(feed), set(outputs)))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(self._repository / request.model_name / "1/model.onnx", options)
        response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
        for name, values in zip(outputs, session.run(outputs, feed), strict=True):
            response.outputs.add(name=name, datatype=np_to_triton_dtype(values.dtype), shape=values.shape)
            response.raw_output_contents.append(values.tobytes())
        return response


@contextmanager
def stand_in(repository: Path) -> Iterator[tuple[str, StandIn]]:
    """Run the fake server; yield its address, and the server."""
    server, answering = grpc.server(ThreadPoolExecutor(2)), StandIn(repository)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(answering, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", answering
    finally:
        server.stop(None)
