"""Program that sends requests with KServe's client and records the answers; `test_open_inference` runs it in KServe's environment.

Arguments: the server's port, and a folder with `images.npy` and `image`, to which `found.json` is written.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.infer_type import RequestedOutput


def tensor(name: str, values: np.ndarray, datatype: str, raw: bool) -> InferInput:
    made = InferInput(name=name, shape=[*values.shape], datatype=datatype)
    made.set_data_from_numpy(values, binary_data=raw)
    return made


def request(request_id: str, inputs: list[InferInput], outputs: list[str]) -> InferRequest:
    return InferRequest(
        model_name="toy",
        model_version="1",
        request_id=request_id,
        infer_inputs=inputs,
        request_outputs=[RequestedOutput(name=name) for name in outputs],
    )


async def main(port: str, folder: Path) -> None:
    images, targets = np.load(folder / "images.npy"), np.array([[0, -1]])
    found: dict[str, Any] = {}
    async with InferenceGRPCClient(f"127.0.0.1:{port}") as client:
        found["live"] = await client.is_server_live()
        found["ready"] = await client.is_server_ready()
        found["models"] = {name: await client.is_model_ready(name) for name in ("toy", "broken", "nosuch")}
        for sent, raw in (("raw", True), ("typed", False)):
            inputs = [tensor("images", images, "UINT8", raw), tensor("targets", targets, "INT64", raw)]
            answer = await client.infer(request(sent, inputs, ["scores", "cam"]))
            outputs = {one.name: one.as_numpy().tolist() for one in answer.outputs}
            found[sent] = {"version": answer.model_version, "id": answer.id, **outputs}
        image = np.array([(folder / "image").read_bytes()], dtype=object)
        answer = await client.infer(request("encoded", [tensor("encoded", image, "BYTES", True)], ["scores"]))
        found["encoded"] = answer.outputs[0].as_numpy().tolist()
        try:
            await client.infer(request("refused", [tensor("nosuch", images, "UINT8", True)], []))
        except grpc.RpcError as error:
            found["refusal"] = [error.code().name, error.details()]
    (folder / "found.json").write_text(json.dumps(found))


asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
