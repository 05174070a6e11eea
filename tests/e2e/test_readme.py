"""Tests that run the README and the guides for training, data, maps, the exported file and its runtimes: every block, in order, as written.

Two stand-ins replace what a test cannot download: a hub cache with randomly initialised weights in the official layout, and a small data
set under the default one's name. The commands do not know the difference. Those of the README are started as a reader starts them, those
of the guides in forks of a process that has imported PyTorch. Lines that install are held against pyproject.toml in `tests/docs`, and run
in `tests/packaging`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.forked_commands import ForkedCommands, forked_commands
from tests.helpers.runtimes import onnxruntime_web

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(sh|python|js)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = (
    "README.md",
    *(
        f"docs/{name}.md"
        for name in ("tutorial", "training", "data", "cleaning", "maps", "exported-file", "evaluating", "gallery", "troubleshooting")
    ),
    *(
        f"docs/{name}.md"
        for name in ("plain", "runtime-browser", "runtime-openvino", "runtime-triton", "runtime-litert", "runtime-tensorrt")
    ),
)
"""In an order in which each finds what it takes for granted: `exported-file` reads what `maps` exports."""
SETUP = ("make ", "pip ")


def blocks(page: str) -> list[tuple[str, str]]:
    return [(match[1], match[2]) for match in BLOCK.finditer((ROOT / page).read_text(encoding="utf-8"))]


BLOCKS = [
    pytest.param(page, language, block, id=f"{Path(page).stem} {number}")
    for page in PAGES
    for number, (language, block) in enumerate(blocks(page), 1)
    if not block.startswith(SETUP)
]


@pytest.fixture(scope="module")
def home(shared_data: Path, unpacked: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a working directory as a reader has it: a data set, photographs, images, a file of weights."""
    home = tmp_path_factory.mktemp("readme")
    photographs = unpacked("cats-vs-dogs")
    for part, count in (("train", 8), ("test", 4)):
        for label in ("cat", "dog"):
            folders = (home / "data" / "cats-vs-dogs" / part / label, home / "PATH" / "TO" / "FOLDER" / part / label)
            for folder in (*folders, home / "photos" / label):
                folder.mkdir(parents=True, exist_ok=True)
                for image in sorted((photographs / part / label).iterdir())[:count]:
                    shutil.copy(image, folder)
    (home / "folder").mkdir()
    for number, image in enumerate(sorted((photographs / "test" / "dog").iterdir())[:3]):
        shutil.copy(image, home / "image.jpg" if number == 0 else home / "folder" / image.name)
    shutil.copy(min((photographs / "test" / "cat").iterdir()), home / "cat.jpg")
    for name in ("vgg16", "resnet18"):
        fill_hub_cache(home / "hub", name)
    os.symlink(shared_data / "weights" / "mobilenetv2_100.imagenet.safetensors", home / "FILE")
    os.symlink(shared_data / "weights" / "tf_efficientnet_lite0.imagenet.safetensors", home / "CLASSIFIER")
    if (ROOT / "demo").is_dir():  # `make demo` has run
        shutil.copytree(ROOT / "demo", home / "demo")
    return home


def fill_hub_cache(cache: Path, name: str) -> None:
    """Write random weights of `name` into the cache of the hub's client."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model(name)
    repository = cache / ("models--" + model.pretrained_cfg["hf_hub_id"].replace("/", "--"))
    revision = "0" * 40
    snapshot = repository / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    (snapshot / "config.json").write_text(json.dumps({"architecture": name, "pretrained_cfg": {}}))


@pytest.fixture(scope="module")
def environment(home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TLCLI_DATA": str(home / "data"),
        "TLCLI_CACHE": str(home / "cache"),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HUB_OFFLINE": "1",
    }


@pytest.fixture(scope="module")
def commands(home: Path, environment: dict[str, str]) -> Iterator[ForkedCommands]:
    with forked_commands(home, environment) as started:
        yield started


@pytest.fixture(scope="module")
def servers() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    stop(started)


def test_its_first_screen_has_an_image_an_installation_commands_and_python() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = text.partition("\n## Why")[0]
    assert first.index("![") < first.index("## Install") < first.index("## On the command line") < first.index("## In Python")
    languages = [language for language, _ in blocks("README.md")]
    assert languages[:3] == ["sh", "sh", "python"]
    assert [len(block.strip().splitlines()) for _, block in blocks("README.md")[:2]] == [1, 3]


def test_the_two_commands_of_make_run() -> None:
    """In the project itself; `make test` up to the tests, of which this is one."""
    assert ("sh", "make demo\nmake test\n") in blocks("README.md")
    subprocess.run(["make", "venv"], cwd=ROOT, check=True, timeout=1200)
    began = time.time()
    subprocess.run(["make", "demo"], cwd=ROOT, check=True, timeout=600)
    assert time.time() - began <= 180
    written = [path for path in (ROOT / "demo").rglob("*") if path.is_file() and path.stat().st_mtime >= began]
    names = {path.name for path in written}
    assert names >= {"model.onnx", "answers.png", "curves.png", "confusion_matrix.png", "mistakes.png"}
    assert any(name.startswith("image.gradcam.") for name in names)
    collect_only = {**os.environ, "PYTEST_ADDOPTS": "--collect-only -q"}
    subprocess.run(["make", "test"], cwd=ROOT, check=True, timeout=600, env=collect_only)


@pytest.mark.parametrize(("page", "language", "block"), BLOCKS)
def test_commands_and_code_run(
    page: str,
    language: str,
    block: str,
    home: Path,
    environment: dict[str, str],
    commands: ForkedCommands,
    servers: list[subprocess.Popen[bytes]],
) -> None:
    if language == "js":  # its first line names the file
        (home / block.split()[1]).write_text(block)
        return
    if block.startswith(("npm ", "node ")):
        onnxruntime_web.require()
    if language == "python":
        subprocess.run([sys.executable, "-c", block], cwd=home, env=environment, check=True, timeout=120)
        return
    for line in block.splitlines():
        if "tf_efficientnet_lite0" in line:
            line = line.replace("FILE", "CLASSIFIER")
        if line.startswith("npm install"):  # the package is installed already
            assert line.split()[2] == onnxruntime_web.version()
            os.symlink(onnxruntime_web.PACKAGE.parent, home / "node_modules")
            continue
        if line.startswith("tlcli serve"):
            start(servers, line.split(), home, environment)
        elif line.startswith("tlcli ") and page != "README.md":
            commands.run(*shlex.split(line)[1:])
        else:
            subprocess.run(line, shell=True, cwd=home, env=environment, check=True, timeout=600)


def start(servers: list[subprocess.Popen[bytes]], command: list[str], home: Path, environment: dict[str, str]) -> None:
    """Start a server in place of an earlier one, and wait until it is ready."""
    stop(servers)
    servers.append(subprocess.Popen(command, cwd=home, env=environment))
    wait_for_server()


def stop(servers: list[subprocess.Popen[bytes]]) -> None:
    while servers:
        server = servers.pop()
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0


def wait_for_server() -> None:
    from tlcli.service import Client

    with Client("127.0.0.1", 8001) as client:
        client.wait_until_ready(timeout_s=60)
        time.sleep(0.1)
