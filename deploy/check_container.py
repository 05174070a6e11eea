"""Check of the Dockerfile's images: build them, run them as in production, and test that they do what docs/containers.md says.

    python deploy/check_container.py [--cpu] [--train] [--base IMAGE] [--storage FOLDER]

`make container-check` runs it. It needs root, the Debian packages in `container_tools`, and minutes, so it is not part of `make test`.
Without --base it builds a base image with debootstrap: a Debian with its own Python, in place of the official Python image.
The containers are as in production: process 1, a read-only root file system, no capabilities, their own network. This machine's pip
configuration is passed to the build as a secret.
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
RESTRICTIONS = (
    "--read-only",
    "--read-only-tmpfs=false",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
    "--memory=2g",
    "--pids-limit=512",
)
"""Options of docker-compose.yml; here without any writable folder."""

TRAINING = (
    "finetune --backbone test_resnet --weights none --mode full --epochs 1 --image-size 64"
    " --dataset shapes --limit 40 --output runs/shapes --name shapes --quiet"
)

PACKAGES = """
import importlib.metadata, sysconfig
print(*(f"{package.name}=={package.version}" for package in importlib.metadata.distributions(path=[sysconfig.get_path("purelib")])))
"""
IMPORTABLE = """
import importlib.util
print([name for name in ('torch', 'torchvision', 'timm', 'onnx', 'pip') if importlib.util.find_spec(name)])
"""
CUDA_LINKS = """
import ctypes, pathlib, onnxruntime
onnxruntime.preload_dlls()
try:
    ctypes.CDLL(str(pathlib.Path(onnxruntime.__file__).parent / "capi/libonnxruntime_providers_cuda.so"))
    print("loaded")
except OSError as error:
    print("missing", error)
"""


def check(holds: object, claim: str, actual: object = "") -> None:
    """Print a claim that holds.

    Raises:
        CheckError: the claim does not hold; the message shows the actual value.
    """
    if not holds:
        raise CheckError(f"check failed: {claim}: {actual}")
    print(f"  ok: {claim}", flush=True)


def build_base(podman: Podman) -> str:
    """Build a Debian image with its own Python, in place of the official Python image, and return its name."""
    name = f"localhost/python-on-debian:{DEBIAN}"
    if podman.has(name):
        return name
    print(f"base: Debian {DEBIAN} with its Python, built with debootstrap in place of the official Python image", flush=True)
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
    """Return this machine's pip configuration as arguments of a build. Entries that name a local folder are left out."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    options = dict(re.findall(r"^(?:global|install|:env:)\.([\w-]+)='(.*)'$", listed, re.MULTILINE))
    lines, secrets = ["[global]"], []
    for key in {"index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout"} & options.keys():
        words = [word for word in options[key].split() if not word.startswith(("file:", "/"))]
        lines += [f"{key} = {' '.join(words)}"] if words else []
    if "cert" in options:
        lines.append("cert = /run/secrets/pip-ca")
        secrets.append(f"--secret=id=pip-ca,src={options['cert']}")
    file = folder / "pip.conf"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [*secrets, f"--secret=id=pip.conf,src={file}"]


def build(podman: Podman, base: str, target: str, tag: str, **arguments: str) -> str:
    """Build a target of the Dockerfile and return the image's name."""
    name = f"localhost/tlcli-{target}:{tag}"
    build_arguments = [f"--build-arg={key}={value}" for key, value in {"PYTHON_IMAGE": base, **arguments}.items()]
    # The OCI format has no health checks. The build steps need their own root folder, but no other isolation.
    options = ["--format=docker", "--isolation=chroot", "--layers", f"--target={target}", f"--tag={name}"]
    began = time.monotonic()
    podman("build", *options, *build_arguments, *pip_secrets(podman.folder), str(ROOT))
    print(f"{name}: built in {time.monotonic() - began:.0f} s", flush=True)
    return name


def print_size(podman: Podman, image: str, base: str) -> None:
    """Print the uncompressed size of an image, and its largest folders."""
    total, base_size = (float(podman.about("image", name)["Size"]) / 1e6 for name in (image, base))
    print(f"{image}: {total:.0f} MB, of which {base_size:.0f} MB are the base; largest folders in MB:", flush=True)
    folders = "/opt /opt/venv/lib/python3*/site-packages /opt/nvidia/*/lib"
    program = f"for folder in {folders}; do du --all --block-size=1000000 --max-depth=1 $folder 2>/dev/null; done | sort -rn"
    sizes = podman("run", "--rm", "--no-healthcheck", "--entrypoint=sh", image, "-c", program)
    print("\n".join(f"    {line}" for line in sizes.splitlines()[:20]), flush=True)


def check_contents(podman: Podman, image: str, absent: list[str]) -> None:
    """Check that all packages have their pinned versions, and that the image contains nothing it should not."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {_normal(name): version for name, _, version in (line.partition("==") for line in lines)}
    packages = podman.inside(image, PACKAGES).split()
    deviating = [package for package in packages if pinned.get(_normal(package.split("==")[0])) != package.split("==")[1]]
    check(packages and not deviating, f"its {len(packages)} packages have the versions in constraints.txt", deviating)
    importable = podman.inside(image, f"import sys; sys.path = [path for path in sys.path if 'dist-packages' not in path]\n{IMPORTABLE}")
    check(not any(repr(name) in importable for name in absent), f"it does not contain {', '.join(absent)}", importable)
    check(podman.inside(image, "import os; print(os.getuid(), os.getgid())") == "10001 10001", "it runs as user 10001, not as root")
    secrets = podman("run", "--rm", "--no-healthcheck", "--entrypoint=find", image, "/run", "/build", "-name", "pip*", may_fail=True)
    check("/pip" not in secrets, "it does not contain pip's configuration", secrets)


def _normal(name: str) -> str:
    """Normalise a package name as package indexes do."""
    return re.sub("[-_.]+", "-", name).lower()


def make_model(folder: Path) -> Path:
    """Export a small network with its maps, and return the model repository."""
    models = folder / "models"
    weights = ["--backbone", "test_resnet", "--weights", "none", "--name", "small"]
    tlcli("export", *weights, "--check-images", "2", "--models", str(models), "--quiet")
    return models


def tlcli(*arguments: str) -> None:
    """Run a tlcli command on this machine, outside of any container."""
    subprocess.run([sys.executable, "-m", "tlcli", *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def check_serving(podman: Podman, image: str, models: Path) -> None:
    """Start a server in a container, send requests, inspect the process, and stop it."""
    from tlcli.service import Client

    output = podman("run", "--no-healthcheck", *RESTRICTIONS, f"--volume={models}:/models:ro", image, may_fail=True)
    check("host 0.0.0.0: requests would travel unencrypted" in output, "it refuses to start without TLS and without `insecure`", output)

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = ("--env=TLCLI_SERVE_INSECURE=true", f"--env=TLCLI_SERVE_GRACE_S={GRACE_S}", "--env=TLCLI_SERVE_METRICS_PORT=8002")
    mounts = (f"--publish=127.0.0.1:{port}:8001", f"--volume={models}:/models:ro")
    container = podman.start(image, options=(*RESTRICTIONS, *settings, *mounts))
    health = podman.about("image", image)["Healthcheck"]["Test"][1:]
    began = time.monotonic()
    while "SERVING" not in (state := podman("exec", container, *health, may_fail=True)) or "NOT_SERVING" in state:
        if time.monotonic() - began > 60:
            raise CheckError(f"not healthy within 60 s: {state}\n{podman('logs', container)}")
    check(True, f"its health check ({' '.join(health)}) reports: {state}")

    with Client("127.0.0.1", port) as client:
        check_answer(client.classify(IMAGE, cam="gradcam"), next(models.glob("*/*/model.onnx")).parent)
    check_process(podman, container)

    with Client("127.0.0.1", port, retries=0) as client:
        began = time.monotonic()
        client.classify(IMAGE, cam="scorecam")
        number = min(40, max(4, round(3 / (time.monotonic() - began))))  # work for about three seconds
        pool = ThreadPoolExecutor(number)
        requests = [pool.submit(client.classify, IMAGE, cam="scorecam", timeout_s=60.0) for _ in range(number)]
        time.sleep(0.5)
        in_flight = sum(not request.done() for request in requests)
        check(in_flight, f"{in_flight} requests are in flight at the stop")
        began = time.monotonic()
        podman("stop", f"--time={GRACE_S + 5}", container)
        took_s = time.monotonic() - began
        check(all(request.result(1).predictions[0].map for request in requests), "after SIGTERM all in-flight requests were answered")
    code = podman.about("container", container)["State"]["ExitCode"]
    check(code == 0 and took_s < GRACE_S, f"it exited with 0 after {took_s:.1f} s", (code, took_s, podman("logs", container)))


def check_answer(answer: Classification, model: Path) -> None:
    """Check that scores and map equal those of the file on this machine."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        arrays, cam = Path(folder, "answers.npz"), ["--cam", "gradcam", "--output", folder]
        tlcli("predict", str(model.parent), str(IMAGE), *cam, "--npz", str(arrays), "--device", "cpu", "--quiet")
        with np.load(arrays) as expected:
            scores, maps = expected["scores"][0], expected["maps"][0, 0]
    best = answer.predictions[0]
    assert best.map is not None
    assert best.map.values is not None
    check(best.class_id == int(scores.argmax()), f"an image over gRPC: class {best.class_id}, score {best.score:.6f}")
    differences = float(abs(best.score - scores.max())), float(np.abs(best.map.values - maps).max() / np.abs(maps).max())
    claim = f"score and Grad-CAM map equal those outside of the container within {max(differences):.0e}"
    check(max(differences) < 1e-5 and maps.any(), claim, differences)


def check_process(podman: Podman, container: str) -> None:
    """Check the restrictions of the server's process."""
    status = dict(line.split(":\t", 1) for line in podman("exec", container, "cat", "/proc/1/status").splitlines() if ":\t" in line)
    command = podman("exec", container, "cat", "/proc/1/cmdline").split("\0")
    check(command[-2:] == ["serve", ""], f"process 1 is {' '.join(command).strip()}")
    check(status["Uid"].split() == ["10001"] * 4 and status["Gid"].split() == ["10001"] * 4, "process 1 runs as 10001", status["Uid"])
    privileges = status["CapPrm"], status["CapEff"], status["CapBnd"], status["NoNewPrivs"]
    check(privileges == ("0" * 16, "0" * 16, "0" * 16, "1"), "process 1 has no capabilities and cannot gain any", privileges)
    for path in ("/", "/tmp", "/models", "/opt/tlcli"):
        output = podman("exec", container, "touch", f"{path}/written", may_fail=True)
        if "Read-only file system" not in output:
            raise CheckError(f"{path} is writable: {output}")
    check(True, "all its folders are read-only, including /tmp and the models")


def check_cuda(podman: Podman, image: str) -> None:
    """Check that all CUDA libraries are in the image except the driver's, which comes from the machine."""
    output = podman.inside(image, CUDA_LINKS)
    claim = "ONNX Runtime's CUDA finds all libraries but the driver's"
    check(re.search("^loaded|missing libcuda.so.1: ", output, re.MULTILINE), claim, output)
    check(
        podman.inside(image, "from tlcli.contract.model.onnx_model import resolve_device; print(resolve_device('auto'))") == "cpu",
        "without a GPU it uses the CPU",
    )


def check_training(podman: Podman, image: str, folder: Path) -> Path:
    """Train and export in a container; return the model repository that it wrote."""
    for name in ("runs", "models", "data"):
        (folder / name).mkdir(parents=True)
        (folder / name).chmod(0o777)
    mounts = [f"--volume={folder / name}:/srv/{name}" for name in ("runs", "models", "data")]
    memory = ("--tmpfs=/tmp", "--tmpfs=/cache", "--shm-size=1g", "--memory=6g")
    began = time.monotonic()
    podman("run", "--rm", "--no-healthcheck", "--network=none", *RESTRICTIONS, *memory, *mounts, image, *shlex.split(TRAINING))
    check((folder / "runs/shapes/report.html").is_file(), f"it trained and exported in {time.monotonic() - began:.0f} s, without a network")
    return folder / "models"


def main() -> None:
    """Build and check all images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cpu", action="store_true", help="only check the image without CUDA, which is quick")
    parser.add_argument("--train", action="store_true", help="also check the image with PyTorch, which takes several GB more")
    parser.add_argument("--base", help="base image; by default a Debian built with debootstrap")
    parser.add_argument("--storage", type=Path, help="folder that keeps images and layers for the next time")
    options = parser.parse_args()
    needed = [program for program in DEBIAN_PACKAGES if program != "debootstrap" or not options.base]
    if obstacle := problem(missing(needed), is_root=os.geteuid() == 0):
        sys.exit(f"Error: {obstacle}")
    work = Path(tempfile.mkdtemp(prefix="tlcli-containers-"))
    podman = Podman((options.storage or work / "storage").resolve())
    try:
        base = options.base or build_base(podman)
        models = make_model(work)
        for tag, arguments in (("cpu", {"CUDA": "0"}), ("gpu", {}))[: 1 if options.cpu else 2]:
            image = build(podman, base, "serve", tag, **arguments)
            print_size(podman, image, base)
            check_contents(podman, image, ["torch", "torchvision", "timm", "onnx", "pip"])
            if tag == "gpu":
                check_cuda(podman, image)
            check_serving(podman, image, models)
        if options.train:
            image = build(podman, base, "train", "gpu")
            print_size(podman, image, base)
            check_contents(podman, image, ["pip"])
            check_cuda(podman, image)
            check_serving(podman, f"localhost/tlcli-serve:{tag}", check_training(podman, image, work / "trained"))
    except CheckError as error:
        sys.exit(f"Error: {error}")
    finally:
        podman.close(keep=options.storage is not None)
        shutil.rmtree(work, ignore_errors=True)
    print("containers: all checks passed")


if __name__ == "__main__":
    main()
