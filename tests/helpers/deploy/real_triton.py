"""Triton's own server, from a package, serves exported files with the configurations next to them (`make triton`).

It reads, checks and schedules by its own code, and answers over its own gRPC endpoint. What no package has is its ONNX Runtime backend:
`triton_backend.py` stands in its place. What that one asks of a configuration at load is in tests/helpers/exports/triton_rules.py.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import tritonclient.grpc as triton
from google.protobuf import text_format
from PIL import Image
from tritonclient.utils import np_to_triton_dtype

from tests.helpers.deploy.manifests import DEPLOY
from tests.helpers.exports.small_networks import blobs, make, write
from tests.helpers.exports.triton_rules import Graph, refusal
from tlcli.contract.model.description import Plain
from tlcli.exports.triton_config import BATCHING_FILE, CONFIG_FILE, triton_files

SITE = next((Path(sys.prefix) / "triton/lib").glob("python*/site-packages"))
SERVER = SITE / "pytriton/tritonserver"
PORTS = {"grpc": 18001, "http": 18000, "metrics": 18002}
ADDRESS = f"127.0.0.1:{PORTS['grpc']}"
MODELS: dict[str, tuple[tuple[str, str], dict[str, Any]]] = {
    "one-layer": (("resnet18", "linear"), {}),
    "two-layers": (("test_resnet", "mlp:16"), {"layers": ["layer2", "layer4"]}),
    "any-size": (("test_resnet", "linear"), {"dynamic_size": True}),
    "no-maps": (("test_resnet", "linear"), {"methods": ()}),
}
PLAIN: dict[str, tuple[tuple[str, str], dict[str, Any]]] = {
    "plain-one-layer": (("resnet18", "linear"), {"plain": Plain()}),
    "plain-two-layers": (("test_resnet", "mlp:16"), {"layers": ["layer2", "layer4"], "plain": Plain(explained=2)}),
    "plain-top": (("test_resnet", "linear"), {"plain": Plain(classes="top")}),
    "plain-three-images": (("test_resnet", "mlp:16"), {"plain": Plain(batch=3, explained=2)}),
}
"""Plain graphs, for which Triton also merges requests with classes and maps."""


def export(repository: Path) -> None:
    """Write each model with its configurations, and check them with the backend's own rules."""
    from tritonclient.grpc import model_config_pb2

    for name, (network, options) in {**MODELS, **PLAIN}.items():
        model = write(make(*network), repository / name / "1/model.onnx", **options)
        description = model.description.model_copy(update={"name": name})
        for file, text in triton_files(description).items():
            (repository / name / file).parent.mkdir(exist_ok=True)
            (repository / name / file).write_text(text)
            assert not (problem := refusal(text_format.Parse(text, model_config_pb2.ModelConfig()), Graph.read(str(model.path)))), problem


@contextmanager
def server(folder: Path, *flags: str) -> Iterator[Path]:
    """Start the server, wait until it is ready, and yield the path of its log."""
    backends, log = folder / "backends", folder / "log"
    if not backends.exists():
        shutil.copytree(SERVER / "backends", backends)
        stub = shutil.copy(SERVER / f"python_backend_stubs/3.{sys.version_info.minor}/triton_python_backend_stub", backends / "python")
        Path(stub).chmod(0o755)
        (backends / "onnxruntime").mkdir()
        code = Path(__file__).with_name("triton_backend.py").read_text(encoding="utf-8")
        (backends / "onnxruntime/model.py").write_text(f"import sys; sys.path.insert(0, {str(SITE)!r})\n{code}")
    program = SERVER / "bin/tritonserver"
    program.chmod(0o755)
    listening = [word for name, port in PORTS.items() for word in (f"--{name}-port={port}", f"--{name}-address=127.0.0.1")]
    command = [
        program,
        f"--model-repository={folder / 'models'}",
        f"--backend-directory={backends}",
        "--disable-auto-complete-config",
        *listening,
    ]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(SITE / "nvidia_pytriton.libs"), "OMP_NUM_THREADS": "1"}
    with log.open("w") as written, subprocess.Popen([*command, *flags], stdout=written, stderr=written, env=environment) as process:
        try:
            with triton.InferenceServerClient(ADDRESS) as client:
                for _ in range(120):
                    if process.poll() is not None or _is_ready(client):
                        break
                    time.sleep(0.5)
                assert _is_ready(client), log.read_text()[-4000:]
            yield log
        finally:
            process.terminate()


def _is_ready(client: triton.InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_ready())
    except triton.InferenceServerException:
        return False


def ask(client: triton.InferenceServerClient, model: str, outputs: list[str], feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    inputs = []
    for name, values in feed.items():
        inputs.append(triton.InferInput(name, values.shape, np_to_triton_dtype(values.dtype)))
        inputs[-1].set_data_from_numpy(values)
    answer = client.infer(model, inputs, outputs=[triton.InferRequestedOutput(name) for name in outputs])
    return {name: answer.as_numpy(name) for name in outputs}


def same(answered: dict[str, np.ndarray], session: onnxruntime.InferenceSession, feed: dict[str, np.ndarray]) -> None:
    for name, values in zip(answered, session.run(list(answered), feed), strict=True):
        assert answered[name].shape == values.shape, name
        np.testing.assert_allclose(
            answered[name], values, rtol=1e-3, atol=1e-4 * max(1.0, float(np.abs(values).max(initial=0))), err_msg=name
        )


def sessions(folder: Path, models: Iterable[str] = MODELS) -> dict[str, onnxruntime.InferenceSession]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return {name: onnxruntime.InferenceSession(folder / "models" / name / "1/model.onnx", options) for name in models}


def check_everything(folder: Path) -> None:
    """Check config.pbtxt: every output, with and without each optional input."""
    images = blobs(3)
    with server(folder), triton.InferenceServerClient(ADDRESS) as client:
        for name, session in sessions(folder).items():
            outputs = [one.name for one in session.get_outputs()]
            optional = {one.name: one.shape[1] for one in session.get_overridable_initializers()}
            offered: dict[str, list[np.ndarray]] = {"targets": [np.array([[2, -1]]), np.array([[2, -1], [0, 1], [-2, 4]])]}
            if "wanted" in optional:
                offered["wanted"] = [np.zeros((1, optional["wanted"]), bool), np.ones((1, optional["wanted"]), bool)]
                offered["softmax"] = [np.array([[True]])]
            count = 0
            for chosen in itertools.product(*([(key, None), *((key, one) for one in values)] for key, values in offered.items())):
                feed = {"images": images, **{key: value for key, value in chosen if value is not None}}
                same(ask(client, name, outputs, feed), session, feed)
                count += 1
            print(f"{CONFIG_FILE}, {name}: {len(outputs)} outputs, {count} kinds of request, as ONNX Runtime answers them")
        for name, session in sessions(folder, PLAIN).items():
            outputs = [one.name for one in session.get_outputs()]
            feed = {"images": images, "targets": np.array([[2, -1], [0, 1], [-2, 4]])}
            feed = {one.name: feed[one.name] for one in session.get_inputs()}
            same(ask(client, name, outputs, feed), session, feed)
            print(f"{CONFIG_FILE}, {name}: {len(outputs)} outputs from {' and '.join(feed)}, as ONNX Runtime answers them")
        Image.fromarray(images[0]).save(folder / "image.png")
        said = subprocess.run(
            [sys.executable, DEPLOY / "kserve/ask_triton.py", ADDRESS, "one-layer", folder / "image.png"],
            check=True,
            capture_output=True,
            text=True,
        )
        print(said.stdout.strip())


def check_batching(folder: Path) -> None:
    """Check configs/batching.pbtxt: requests of many clients are merged."""
    images = blobs(40)
    with server(folder, f"--model-config-name={Path(BATCHING_FILE).stem}") as log, triton.InferenceServerClient(ADDRESS) as client:
        for name, session in sessions(folder).items():
            outputs = [one.name for one in client.get_model_metadata(name).outputs]
            feeds = [{"images": images[start : start + 1 + start % 2]} for start in range(0, 40, 2)]
            with ThreadPoolExecutor(12) as pool:
                for feed, answered in zip(feeds, pool.map(lambda feed: ask(client, name, outputs, feed), feeds), strict=True):  # noqa: B023
                    same(answered, session, feed)
        runs = _runs(log)
        assert max(runs) > 1, runs
        print(f"{BATCHING_FILE}: {sum(runs)} requests in {len(runs)} runs, the largest of {max(runs)}, each answered as alone")


def check_merged_maps(folder: Path) -> None:
    """Check plain graphs: requests of many clients are merged, each with classes of its own."""
    images, generator = blobs(40), np.random.default_rng(0)
    for flags in ((), (f"--model-config-name={Path(BATCHING_FILE).stem}",)):  # without such a file, Triton reads config.pbtxt
        with server(folder, *flags) as log, triton.InferenceServerClient(ADDRESS) as client:
            for name, session in sessions(folder, [name for name in PLAIN if name != "plain-three-images"]).items():
                before = len(_runs(log))
                outputs = [one.name for one in session.get_outputs()]
                feeds = []
                for start in range(0, 40, 2):
                    some = images[start : start + 1 + start % 4 // 2]
                    feed = {"images": some, "targets": generator.integers(-5, 5, (len(some), 2))}
                    feeds.append({one.name: feed[one.name] for one in session.get_inputs()})
                with ThreadPoolExecutor(12) as pool:
                    for feed, answered in zip(feeds, pool.map(lambda feed: ask(client, name, outputs, feed), feeds), strict=True):  # noqa: B023
                        same(answered, session, feed)
                runs = _runs(log)[before:]
                assert max(runs) > 1, (name, runs)
                print(f"{name}: {sum(runs)} requests for maps in {len(runs)} runs, the largest of {max(runs)}, each answered as alone")


def _runs(log: Path) -> list[int]:
    """Return the number of requests in each run so far."""
    return [int(line.split()[3]) for line in log.read_text().splitlines() if line.startswith("a run of")]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(folder / "models")
        check_everything(folder)
        check_batching(folder)
        check_merged_maps(folder)


if __name__ == "__main__":
    main()
