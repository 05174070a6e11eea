"""LiteRT computes the maps of plain graphs that onnx2tf has converted (`make litert`)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.helpers.exports.small_networks import blobs, make, write
from tlcli.contract.model.description import Plain

PYTHON = Path(sys.prefix) / "litert/bin/python"
SAMPLES = "calibration_image_sample_data_20x128x128x3_float32.npy"
"""File that onnx2tf downloads for its own checks if it is not in the working directory."""

INPUT = Plain(batch=1, explained=2)
CASES = {
    "linear head, the class chosen at run time": ("test_resnet", "linear", INPUT, ["gradcam", "layercam"], []),
    "linear head, the first class": ("test_resnet", "linear", Plain(classes="top", batch=1), ["gradcam", "layercam"], []),
    "hidden head": ("test_resnet", "mlp:16", INPUT, ["gradcam", "gradcam_plus_plus"], []),
    "MobileNetV2": ("mobilenetv2_100", "linear", INPUT, ["gradcam", "layercam"], []),
}
FAILS = {
    "XGrad-CAM": ("test_resnet", "linear", INPUT, ["xgradcam"], []),
    "FEM": ("test_resnet", "linear", INPUT, ["fem"], []),
    "two layers": ("test_resnet", "mlp:16", INPUT, ["gradcam"], ["layer2", "layer4"]),
}
"""Conversions that are known to fail, so that the page says so only as long as it is true."""

RUN = """
import sys
import numpy
from ai_edge_litert.interpreter import Interpreter
feed, interpreter = numpy.load("feed.npz"), Interpreter(model_path=sys.argv[1])
interpreter.allocate_tensors()
runner = interpreter.get_signature_runner()
numpy.savez("answer.npz", **runner(**{name: feed[name] for name in runner.get_input_details()}))
"""


def convert(folder: Path, network: str, head: str, form: Plain, methods: list[str], layers: list[str]) -> str:
    """Export, convert and run one network; return the problem, or an empty text if LiteRT agrees with ONNX Runtime."""
    model = write(make(network, head), folder / "model.onnx", methods=methods, layers=layers or None, plain=form)
    feed = {"images": blobs(1), "targets": np.array([[1, -1]])}
    feed = {value.name: feed[value.name] for value in model.session.get_inputs()}
    np.savez(folder / "feed.npz", **feed)
    np.save(folder / SAMPLES, np.random.default_rng(0).random((20, 128, 128, 3), dtype=np.float32))
    command = [PYTHON.with_name("onnx2tf"), "-i", "model.onnx", "-o", "tflite", "-kat", "images", "-n", "-osd"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if not (folder / "tflite/model_float32.tflite").exists():
        return f"onnx2tf fails: {[*filter(None, done.stdout.splitlines() + done.stderr.splitlines())][-1][:200]}"
    subprocess.run([PYTHON, "-c", RUN, "tflite/model_float32.tflite"], cwd=folder, capture_output=True, check=True)
    answer = np.load(folder / "answer.npz")
    names = [value.name for value in model.session.get_outputs()]
    for name, values in zip(names, model.session.run(names, feed), strict=True):
        if answer[name].shape != values.shape:
            return f"{name} has the shape {answer[name].shape}, not {values.shape}"
        apart = float(np.abs(answer[name] - values).max()) / max(float(np.abs(values).max()), 1e-9)
        if apart > 1e-4:
            return f"{name} differs by {apart:.1e} of its largest value"
    return ""


def main() -> None:
    for name, case in {**CASES, **FAILS}.items():
        with tempfile.TemporaryDirectory() as folder:
            problem = convert(Path(folder), *case)
        print(f"{name}: {problem or 'as ONNX Runtime answers'}", flush=True)
        assert bool(problem) == (name in FAILS), problem


if __name__ == "__main__":
    main()
