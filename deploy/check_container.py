"""Builds the Dockerfile's images, runs them as they are meant to be run, and looks whether they do what docs/containers.md says.

    python deploy/check_container.py [--cpu] [--train] [--base IMAGE] [--storage FOLDER]

`make container-check` runs it. It needs root, the Debian packages in `container_tools`, and minutes: it is no part of `make test`.
Unless a base is named, one is made here: a Debian by debootstrap, with its Python, in the place of the official Python image.
Containers are real ones: process 1, a root file system that cannot be written to, no capabilities, a network of their own. pip's
configuration on this machine goes into the build as a secret.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from container_tools import DEBIAN_PACKAGES, missing, problem
from engine import CheckError, Podman

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from tlcli.service import Classification

DEBIAN = "bookworm"
IMAGE = ROOT / "docs/demo.png"
GRACE_S = 30
HELD_IN = (
    "--read-only",
    "--read-only-tmpfs=false",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
    "--memory=2g",
    "--pids-limit=512",
)
"""As docker-compose.yml runs it; here without any place that can be written to."""

TRAINING = (
    "finetune --backbone test_resnet --weights none --mode full --epochs 1 --image-size 64"
    " --dataset shapes --limit 40 --output runs/shapes --name shapes --quiet"
)

PACKAGES = """
import importlib.metadata, sysconfig
print(*(f"{one.name}=={one.version}" for one in importlib.metadata.distributions(path=[sysconfig.get_path("purelib")])))
"""
FOUND = "import importlib.util; print([name for name in ('torch', 'torchvision', 'timm', 'onnx', 'pip') if importlib.util.find_spec(name)])"
CUDA_LINKS = """
import ctypes, pathlib, onnxruntime
onnxruntime.preload_dlls()
try:
    ctypes.CDLL(str(pathlib.Path(onnxruntime.__file__).parent / "capi/libonnxruntime_providers_cuda.so"))
    print("loaded")
except OSError as error:
    print("missing", error)
"""


def check(holds: object, claim: str, seen: object = "") -> None:
    """Print the claim if it holds.

    Raises:
        CheckError: it does not.
    """
    if not holds:
        raise CheckError(f"not so: {claim}: {seen}")
    print(f"  ok: {claim}", flush=True)


def stand_in(podman: Podman) -> str:
    """A Debian with its own Python, in the place of the official Python image; its name."""
    name = f"localhost/python-on-debian:{DEBIAN}"
    if podman.has(name):
        return name
    print(f"base: Debian {DEBIAN} with its Python, by debootstrap; it stands in for the official Python image", flush=True)
    root, archive = podman.folder / "debian", podman.folder / "debian.tar"
    packages = "--include=python3,python3-venv,ca-certificates"
    subprocess.run(["debootstrap", "--variant=minbase", packages, DEBIAN, str(root)], check=True, stdout=subprocess.DEVNULL)
    for leftover in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man"):
        shutil.rmtree(root / leftover, ignore_errors=True)
    subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
    shutil.rmtree(root)
    podman("import", str(archive), name)
    archive.unlink()
    return name


def pip_secrets(folder: Path) -> list[str]:
    """pip's configuration on this machine as arguments of a build. What names a folder of this machine is left out."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"^(?:global|install|:env:)\.([\w-]+)='(.*)'$", listed, re.MULTILINE))
    lines, secrets = ["[global]"], []
    for key in {"index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout"} & found.keys():
        words = [word for word in found[key].split() if not word.startswith(("file:", "/"))]
        lines += [f"{key} = {' '.join(words)}"] if words else []
    if "cert" in found:
        lines.append("cert = /run/secrets/pip-ca")
        secrets.append(f"--secret=id=pip-ca,src={found['cert']}")
    file = folder / "pip.conf"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [*secrets, f"--secret=id=pip.conf,src={file}"]


def build(podman: Podman, base: str, target: str, tag: str, **arguments: str) -> str:
    """The image's name."""
    name = f"localhost/tlcli-{target}:{tag}"
    given = [f"--build-arg={key}={value}" for key, value in {"PYTHON_IMAGE": base, **arguments}.items()]
    # Health checks are no part of OCI's format. The steps of a build need a root of their own, and no more of a container.
    how = ["--format=docker", "--isolation=chroot", "--layers", f"--target={target}", f"--tag={name}"]
    began = time.monotonic()
    podman("build", *how, *given, *pip_secrets(podman.folder), str(ROOT))
    print(f"{name}: built in {time.monotonic() - began:.0f} s", flush=True)
    return name


def tell_size(podman: Podman, image: str, base: str) -> None:
    """Print the image's size, uncompressed, and what takes most of it."""
    whole, below = (float(podman.about("image", one)["Size"]) / 1e6 for one in (image, base))
    print(f"{image}: {whole:.0f} MB, of which the base has {below:.0f}; in MB:", flush=True)
    folders = "/opt /opt/venv/lib/python3*/site-packages /opt/nvidia/*/lib"
    program = f"for folder in {folders}; do du --all --block-size=1000000 --max-depth=1 $folder 2>/dev/null; done | sort -rn"
    sizes = podman("run", "--rm", "--no-healthcheck", "--entrypoint=sh", image, "-c", program)
    print("\n".join(f"    {line}" for line in sizes.splitlines()[:20]), flush=True)


def check_contents(podman: Podman, image: str, absent: list[str]) -> None:
    """What was installed is what is pinned; nothing is there that should not be."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {_normal(name): version for name, _, version in (line.partition("==") for line in lines)}
    packages = podman.inside(image, PACKAGES).split()
    strangers = [one for one in packages if pinned.get(_normal(one.split("==")[0])) != one.split("==")[1]]
    check(packages and not strangers, f"its {len(packages)} packages are those that constraints.txt pins", strangers)
    found = podman.inside(image, f"import sys; sys.path = [one for one in sys.path if 'dist-packages' not in one]; {FOUND}")
    check(not any(repr(name) in found for name in absent), f"it holds no {', '.join(absent)}", found)
    check(podman.inside(image, "import os; print(os.getuid(), os.getgid())") == "10001 10001", "it runs as 10001, not as root")
    secrets = podman("run", "--rm", "--no-healthcheck", "--entrypoint=find", image, "/run", "/build", "-name", "pip*", may_fail=True)
    check("/pip" not in secrets, "pip's configuration stayed outside", secrets)


def _normal(name: str) -> str:
    """As indexes compare names."""
    return re.sub("[-_.]+", "-", name).lower()


def make_model(folder: Path) -> Path:
    """A repository with a small network in it, exported with its maps."""
    models = folder / "models"
    weights = ["--backbone", "test_resnet", "--weights", "none", "--name", "small"]
    tlcli("export", *weights, "--check-images", "2", "--models", str(models), "--quiet")
    return models


def tlcli(*arguments: str) -> None:
    """A command on this machine, outside of any container."""
    subprocess.run([sys.executable, "-m", "tlcli", *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def check_serving(podman: Podman, image: str, models: Path) -> None:
    """Start it, ask it, look at it from inside, stop it."""
    from tlcli.service import Client

    refused = podman("run", "--no-healthcheck", *HELD_IN, f"--volume={models}:/models:ro", image, may_fail=True)
    check("host 0.0.0.0: requests would travel unencrypted" in refused, "without TLS, and not told that it needs none, it refuses", refused)

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    told = ("--env=TLCLI_SERVE_INSECURE=true", f"--env=TLCLI_SERVE_GRACE_S={GRACE_S}", "--env=TLCLI_SERVE_METRICS_PORT=8002")
    container = podman.start(image, options=(*HELD_IN, *told, f"--publish=127.0.0.1:{port}:8001", f"--volume={models}:/models:ro"))
    health = podman.about("image", image)["Healthcheck"]["Test"][1:]
    began = time.monotonic()
    while "SERVING" not in (said := podman("exec", container, *health, may_fail=True)) or "NOT_SERVING" in said:
        if time.monotonic() - began > 60:
            raise CheckError(f"not healthy within 60 s: {said}\n{podman('logs', container)}")
    check(True, f"its health check ({' '.join(health)}) says: {said}")

    with Client("127.0.0.1", port) as client:
        check_answer(client.classify(IMAGE, cam="gradcam"), next(models.glob("*/*/model.onnx")).parent)
    look_inside(podman, container)

    with Client("127.0.0.1", port, retries=0) as client:
        began = time.monotonic()
        client.classify(IMAGE, cam="scorecam")
        number = min(40, max(4, round(3 / (time.monotonic() - began))))  # for some three seconds
        pool = ThreadPoolExecutor(number)
        asked = [pool.submit(client.classify, IMAGE, cam="scorecam", timeout_s=60.0) for _ in range(number)]
        time.sleep(0.5)
        left = sum(not one.done() for one in asked)
        check(left, f"{left} requests are under way at the stop")
        began = time.monotonic()
        podman("stop", f"--time={GRACE_S + 5}", container)
        took_s = time.monotonic() - began
        check(all(one.result(1).predictions[0].map for one in asked), "SIGTERM: what was under way was answered")
    code = podman.about("container", container)["State"]["ExitCode"]
    check(code == 0 and took_s < GRACE_S, f"it ended with 0 after {took_s:.1f} s", (code, took_s, podman("logs", container)))


def check_answer(answer: Classification, model: Path) -> None:
    """Scores and map are those that the file gives here."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        arrays, cam = Path(folder, "answers.npz"), ["--cam", "gradcam", "--overlays", folder]
        tlcli("predict", str(model.parent), str(IMAGE), *cam, "--npz", str(arrays), "--device", "cpu", "--quiet")
        with np.load(arrays) as expected:
            scores, maps = expected["scores"][0], expected["maps"][0, 0]
    best = answer.predictions[0]
    assert best.map is not None
    assert best.map.values is not None
    check(best.class_id == int(scores.argmax()), f"an image over gRPC: class {best.class_id}, score {best.score:.6f}")
    apart = float(abs(best.score - scores.max())), float(np.abs(best.map.values - maps).max() / np.abs(maps).max())
    check(max(apart) < 1e-5 and maps.any(), f"score and Grad-CAM map as outside of it, within {max(apart):.0e}", apart)


def look_inside(podman: Podman, container: str) -> None:
    """What holds the process in."""
    status = dict(line.split(":\t", 1) for line in podman("exec", container, "cat", "/proc/1/status").splitlines() if ":\t" in line)
    command = podman("exec", container, "cat", "/proc/1/cmdline").split("\0")
    check(command[-2:] == ["serve", ""], f"process 1 is {' '.join(command).strip()}")
    check(status["Uid"].split() == ["10001"] * 4 and status["Gid"].split() == ["10001"] * 4, "process 1 is 10001's", status["Uid"])
    rights = status["CapPrm"], status["CapEff"], status["CapBnd"], status["NoNewPrivs"]
    check(rights == ("0" * 16, "0" * 16, "0" * 16, "1"), "process 1 has no capability and can gain none", rights)
    for path in ("/", "/tmp", "/models", "/opt/tlcli"):
        wrote = podman("exec", container, "touch", f"{path}/written", may_fail=True)
        if "Read-only file system" not in wrote:
            raise CheckError(f"{path} can be written to: {wrote}")
    check(True, "nothing in it can be written to, /tmp and the models included")


def check_cuda(podman: Podman, image: str) -> None:
    """All of CUDA is there but the driver, which the machine brings."""
    said = podman.inside(image, CUDA_LINKS)
    check(re.search("^loaded|missing libcuda.so.1: ", said, re.MULTILINE), "ONNX Runtime's CUDA finds all libraries but the driver's", said)
    check(
        podman.inside(image, "from tlcli.contract.model.onnx_model import resolve_device; print(resolve_device('auto'))") == "cpu",
        "without a GPU it takes the CPU",
    )


def check_training(podman: Podman, image: str, folder: Path) -> Path:
    """Train and export in a container; the models that it wrote."""
    for name in ("runs", "models", "data"):
        (folder / name).mkdir(parents=True)
        (folder / name).chmod(0o777)
    mounts = [f"--volume={folder / name}:/srv/{name}" for name in ("runs", "models", "data")]
    places = ("--tmpfs=/tmp", "--tmpfs=/cache", "--shm-size=1g", "--memory=6g")
    began = time.monotonic()
    podman("run", "--rm", "--no-healthcheck", "--network=none", *HELD_IN, *places, *mounts, image, *shlex.split(TRAINING))
    check((folder / "runs/shapes/report.html").is_file(), f"it trained and exported in {time.monotonic() - began:.0f} s, without a network")
    return folder / "models"


def main() -> None:
    """The walk."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cpu", action="store_true", help="the image without CUDA alone: for quick turns")
    parser.add_argument("--train", action="store_true", help="the image with PyTorch too: several GB more")
    parser.add_argument("--base", help="the image to build on; by default a Debian that is made here")
    parser.add_argument("--storage", type=Path, help="keep images and layers in this folder, for the next time")
    given = parser.parse_args()
    needed = [program for program in DEBIAN_PACKAGES if program != "debootstrap" or not given.base]
    if found := problem(missing(needed), is_root=os.geteuid() == 0):
        sys.exit(f"Error: {found}")
    work = Path(tempfile.mkdtemp(prefix="tlcli-containers-"))
    podman = Podman((given.storage or work / "storage").resolve())
    try:
        base = given.base or stand_in(podman)
        models = make_model(work)
        for tag, arguments in (("cpu", {"CUDA": "0"}), ("gpu", {}))[: 1 if given.cpu else 2]:
            image = build(podman, base, "serve", tag, **arguments)
            tell_size(podman, image, base)
            check_contents(podman, image, ["torch", "torchvision", "timm", "onnx", "pip"])
            if tag == "gpu":
                check_cuda(podman, image)
            check_serving(podman, image, models)
        if given.train:
            image = build(podman, base, "train", "gpu")
            tell_size(podman, image, base)
            check_contents(podman, image, ["pip"])
            check_cuda(podman, image)
            check_serving(podman, f"localhost/tlcli-serve:{tag}", check_training(podman, image, work / "trained"))
    except CheckError as error:
        sys.exit(f"Error: {error}")
    finally:
        podman.close(keep=given.storage is not None)
        shutil.rmtree(work, ignore_errors=True)
    print("containers: all as it should be")


if __name__ == "__main__":
    main()
