"""Figures of a server under attack: hostile requests among valid ones, in 2 GiB of memory. CPU.

    python benchmarks/hostile.py [--seconds 600] [--memory-mib 2048] [--scale 1] [--cases FOLDER] [--json FILE] [ATTACK ...]

    wrong answers    valid requests whose scores or map differ from those of the file when it is run on the image alone
    valid requests   answered, rejected for the time being (RESOURCE_EXHAUSTED, UNAVAILABLE; 429, 503), and failed otherwise
    p99              latency of those that were answered, in a quiet run and under attack
    health           longest wait for a health check over gRPC and HTTP, one every 50 ms
    memory           anonymous, of the server and its children: before, at most, 10 s after the attacks; processes killed by the kernel
    SIGTERM          sent during scan bombs and Score-CAMs: exit code, seconds until the end; `--grace-s` is 10

The attacks are in `benchmarks/attacks.py`. They, the health checks and the valid clients are processes of their own on the same cores.
The memory limit is that of a control group, if this user may make one; else the server's own budget is set to half of it.
`--cases` is a folder of additional encoded images to send. `--scale` makes each attack smaller, for tests.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from benchmarks.attacks import ATTACKS, Target, run_attacks
from tests.helpers.contract import hostile_images
from tlcli.contract.errors import OverloadedError, ServerError, TlcliError
from tlcli.contract.images import decoding
from tlcli.contract.model.onnx_model import Model
from tlcli.service import Client

GRACE_S = 10
FIXED, DYNAMIC = "mobilenetv3_small_100", "test_resnet"
METHODS = (None, "gradcam", "layercam")
SCORES_TOLERANCE, MAP_TOLERANCE = 1e-5, 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("attacks", nargs="*", default=list(ATTACKS), help=", ".join(ATTACKS))
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--memory-mib", type=int, default=2048)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--cases", type=Path)
    parser.add_argument("--max-decode-s", type=float, default=2.0, help="of the server")
    parser.add_argument("--rest", type=float, default=10.0, help="seconds between the attacks and the last look at the memory")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = export(Path(folder) / "models")
        figures = measure(models, **{name: value for name, value in vars(arguments).items() if name != "json"})
    for name, value in figures.items():
        print(f"{name}: {value}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


def export(models: Path) -> Path:
    common = ["--weights", "none", "--models", str(models), "-q", "--cam", "gradcam,layercam,scorecam", "--check-images", "2"]
    for backbone, flags in ((FIXED, []), (DYNAMIC, ["--dynamic-size"])):
        command = [sys.executable, "-m", "tlcli", "export", "--backbone", backbone, *common, *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return models


def measure(
    models: Path,
    attacks: list[str],
    seconds: float,
    memory_mib: int,
    scale: float,
    cases: Path | None,
    max_decode_s: float,
    rest: float,
) -> dict[str, Any]:
    """Run the server quietly, under attack, at rest and until its end; return the figures by name."""
    found = tuple(sorted(path for path in cases.iterdir() if path.suffix in decoding.SUFFIXES)) if cases else ()
    expected = Expected(models)
    with limited(memory_mib) as limit, server(models, limit, max_decode_s) as victim:
        target = Target(victim.grpc_port, victim.http_port, FIXED, DYNAMIC, scale, found)
        quiet = valid_load(target, expected, min(20.0, seconds))
        before = memory_mib_of(victim.process.pid, limit.group)
        with watched(target, victim, limit.group) as watch, attacking(target, attacks, seconds) as attackers:
            hostile = valid_load(target, expected, seconds, until=attackers.ended)
        time.sleep(rest)
        after, kills = memory_mib_of(victim.process.pid, limit.group), kernel_kills(limit.group)
        code, took = stop_among_attacks(victim, target)
    return {
        "limit": f"{memory_mib} MiB {limit.how}",
        "wrong answers": len(quiet.wrong) + len(hostile.wrong),
        "first wrong answer": next(iter(quiet.wrong + hostile.wrong), None),
        "valid requests answered": hostile.outcomes["answered"],
        "valid requests refused for the time being": hostile.outcomes["refused"],
        "valid requests failed": {name: n for name, n in hostile.outcomes.items() if name not in ("answered", "refused")},
        "p99 in a quiet run, ms": round(quiet.p99_ms()),
        "p99 under attack, ms": round(hostile.p99_ms()),
        "longest health wait, s": round(watch.longest_s, 2),
        "failed health checks": watch.failed,
        "memory before, MiB": before,
        "peak memory, MiB": watch.peak_mib,
        "memory after, MiB": after,
        "processes killed for want of memory": kills,
        "exit code": code,
        "from SIGTERM to the end, s": round(took, 1),
        "grace, s": GRACE_S,
        "attacks": attackers.summary(),
        "tracebacks in the log": sum(line.startswith("Traceback") for line in victim.log),
        "models ready at the end": victim.ready_at_end,
    }


# The server


@dataclass
class Limit:
    """Memory limit of the server.

    prefix: of the server's command.
    flags: of `tlcli serve`.
    group: folder of the control group, if there is one.
    """

    how: str
    group: Path | None = None
    prefix: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)


@contextlib.contextmanager
def limited(memory_mib: int) -> Iterator[Limit]:
    """Make a control group with a memory limit, version 2 or 1, and yield the limit."""
    size = memory_mib << 20
    for parent, file in ((Path("/sys/fs/cgroup"), "memory.max"), (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes")):
        group = parent / f"tlcli-hostile-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if not (group / file).exists():  # the kernel makes it, where this is a control group and memory one of its controllers
            group.rmdir()
            continue
        try:
            (group / file).write_text(str(size))
        except OSError:
            group.rmdir()
            continue
        try:
            yield Limit("by a control group", group, ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"])
        finally:
            for _ in range(50):
                with contextlib.suppress(OSError):
                    group.rmdir()
                    break
                time.sleep(0.1)
        return
    yield Limit("by the server's own budget alone: no control group can be made here", flags=["--max-memory-bytes", str(size // 2)])


@dataclass
class Victim:
    """Server under attack.

    log: lines of standard error so far.
    ready_at_end: models that were ready at the SIGTERM.
    """

    process: subprocess.Popen[str]
    grpc_port: int
    http_port: int
    log: list[str]
    ready_at_end: list[str] = field(default_factory=list)


@contextlib.contextmanager
def server(models: Path, limit: Limit, max_decode_s: float) -> Iterator[Victim]:
    command = [*limit.prefix, sys.executable, "-m", "tlcli", "serve", str(models), "--port", "0", "--http-port", "0", "--device", "cpu"]
    command += ["--model-control", "explicit", "--grace-s", str(GRACE_S), "--max-decode-s", str(max_decode_s), *limit.flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    log: list[str] = []
    try:
        for line in process.stderr:
            log.append(line)
            if "serving " in line:
                break
        (http_port,) = re.findall(r"HTTP at http://127\.0\.0\.1:(\d+)", "".join(log))
        (grpc_port,) = re.findall(r"listening on 127\.0\.0\.1:(\d+)", "".join(log))
        reader = threading.Thread(target=lambda: log.extend(process.stderr or ()), daemon=True)
        reader.start()
        yield Victim(process, int(grpc_port), int(http_port), log)
    finally:
        process.kill()
        process.wait()


def stop_among_attacks(victim: Victim, target: Target) -> tuple[int | str, float]:
    """Send SIGTERM during decoding and Score-CAM; return the exit code and the seconds until the end."""
    with Client(port=victim.grpc_port) as client:
        victim.ready_at_end = sorted(name for name in (FIXED, DYNAMIC) if client.is_ready(name, timeout_s=10))
    with attacking(target, ["scan_bombs", "score_cams"], 1.0):
        time.sleep(1.0)
        began = time.monotonic()
        victim.process.send_signal(signal.SIGTERM)
        try:
            return victim.process.wait(GRACE_S + 30), time.monotonic() - began
        except subprocess.TimeoutExpired:
            return "none: it did not end", time.monotonic() - began


def memory_mib_of(pid: int, group: Path | None) -> int:
    """Return the anonymous memory of a control group in MiB; without one, of a process and its children, counting shared pages twice."""
    if group is not None:
        figures = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(figures.get("anon", figures.get("total_rss", 0))) >> 20
    total = 0
    for process in (pid, *descendants(pid)):
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
    return total // 1024


def kernel_kills(group: Path | None) -> int | None:
    """Return the number of processes in the group that the kernel killed for lack of memory."""
    for file in ("memory.events", "memory.oom_control"):
        if group is not None and (group / file).exists():
            figures = dict(line.split() for line in (group / file).read_text().splitlines())
            return int(figures.get("oom_kill", 0))
    return None


def descendants(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                for child in (task / "children").read_text().split():
                    yield int(child)
                    yield from descendants(int(child))


# Attacks and health, in processes of their own


class Attackers:
    """Processes that attack.

    ended: set when the attacks are over.
    """

    def __init__(self) -> None:
        self.ended = threading.Event()
        self._lines: list[str] = []

    def summary(self) -> dict[str, Any]:
        """Return, per attack, the number of runs, the longest run in seconds, and the outcomes."""
        attacks: dict[str, Any] = {}
        for line in map(json.loads, self._lines):
            summary = attacks.setdefault(line["attack"], {"runs": 0, "longest_s": 0.0, "outcomes": {}})
            summary["runs"] += 1
            summary["longest_s"] = max(summary["longest_s"], line["seconds"])
            summary["outcomes"] = dict(Counter(summary["outcomes"]) + Counter(line["outcomes"]))
        return attacks

    def read(self, lines: Any) -> None:
        while (line := lines.get()) is not None:
            print(line[:400], file=sys.stderr, flush=True)
            self._lines.append(line)
        self.ended.set()


@contextlib.contextmanager
def attacking(target: Target, names: list[str], seconds: float) -> Iterator[Attackers]:
    """Start two processes that attack, in different orders."""
    spawn = multiprocessing.get_context("spawn")
    lines: Any = spawn.Queue()
    processes = [spawn.Process(target=_attack, args=(target, names, seconds, seed, lines), daemon=True) for seed in range(2)]
    attackers = Attackers()
    reader = threading.Thread(target=attackers.read, args=(lines,), daemon=True)
    reader.start()
    for process in processes:
        process.start()

    def end() -> None:
        for process in processes:
            process.join()
        lines.put(None)

    threading.Thread(target=end, daemon=True).start()
    try:
        yield attackers
    finally:
        for process in processes:
            process.kill()
        reader.join(10)


def _attack(target: Target, names: list[str], seconds: float, seed: int, lines: Any) -> None:
    run_attacks(target, names, seconds, seed, lines.put)


@dataclass
class Watch:
    longest_s: float = 0.0
    failed: int = 0
    peak_mib: int = 0


@contextlib.contextmanager
def watched(target: Target, victim: Victim, group: Path | None) -> Iterator[Watch]:
    """Check health and record the memory, from a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    found: Any = spawn.Queue()
    process = spawn.Process(target=_watch, args=(target, victim.process.pid, group, stop, found), daemon=True)
    process.start()
    watch = Watch()
    try:
        yield watch
    finally:
        stop.set()
        watch.longest_s, watch.failed, watch.peak_mib = found.get(timeout=200)
        process.join()


def _watch(target: Target, pid: int, group: Path | None, stop: Any, found: Any) -> None:
    watch = Watch()

    def look() -> None:
        while not stop.is_set():
            watch.peak_mib = max(watch.peak_mib, memory_mib_of(pid, group))
            time.sleep(0.03)

    def ask(healthy: Callable[[], bool]) -> None:
        while not stop.is_set():
            began = time.monotonic()
            well = healthy()
            watch.longest_s = max(watch.longest_s, time.monotonic() - began)
            watch.failed += not well
            time.sleep(0.05)

    with Client(port=target.grpc_port) as client:
        asks = (lambda: client.is_ready(timeout_s=120), lambda: _http_is_live(target.http_port))
        threads = [threading.Thread(target=look), *(threading.Thread(target=ask, args=(one,)) for one in asks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found.put((watch.longest_s, watch.failed, watch.peak_mib))


def _http_is_live(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("GET", "/v2/health/live")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


# Valid requests


class Expected:
    """Images, and the answers of the file for each of them alone."""

    def __init__(self, models: Path) -> None:
        (path,) = (models / FIXED).rglob("model.onnx")
        model = Model.open(path, "cpu", threads=1)
        self.images = valid_images()
        self._scores: list[npt.NDArray[np.float32]] = []
        self._maps: list[dict[str, npt.NDArray[np.float32]]] = []
        for encoded in self.images:
            image = decoding.decode(encoded)
            answer = model.run(model.description.preprocessing.apply(image)[None], methods=("gradcam", "layercam"))
            self._scores.append(answer.scores[0])
            self._maps.append({name: values[0, 0] for name, values in answer.maps.items()})

    def difference(self, number: int, best: Any, method: str | None) -> str | None:
        """Describe how the first prediction for an image differs from the expected one; None if it does not."""
        scores = self._scores[number]
        if best.class_id != int(scores.argmax()) or abs(best.score - float(scores.max())) > SCORES_TOLERANCE:
            return f"image {number}: class {best.class_id} {best.score:.6f} instead of {int(scores.argmax())} {scores.max():.6f}"
        if method is not None:
            expected = self._maps[number][method]
            far = float(np.abs(best.map.values - expected).max() / max(np.abs(expected).max(), 1e-12))
            if far > MAP_TOLERANCE:
                return f"image {number}: {method} differs by {far:.1e} of its largest value"
        return None


def valid_images() -> list[bytes]:
    """Return encoded images of many kinds, some of them unusual but valid."""
    images = []
    for number in range(8):
        image = Image.new("RGB", (240 + 40 * number, 200), (30 * number, 90, 200 - 20 * number))
        draw = ImageDraw.Draw(image)
        draw.ellipse((20 * number, 30, 20 * number + 90, 120), fill=(250, 240 - 20 * number, 10))
        draw.rectangle((90, 20 + 10 * number, 140, 180), fill=(10, 30 * number, 120))
        images.append(image)
    metadata = hostile_images.png_chunk(b"iTXt", b"a\x00\x00\x00\x00\x00" + b"b" * 2_000_000)
    return [
        *(hostile_images.encoded(image, "JPEG", quality=90) for image in images),
        hostile_images.encoded(images[0], "JPEG", progressive=True),
        hostile_images.encoded(images[1], "PNG"),
        hostile_images.encoded(images[2].convert("L"), "PNG"),
        hostile_images.encoded(images[3].convert("P"), "GIF"),
        hostile_images.encoded(images[4], "WEBP", quality=80),
        hostile_images.encoded(images[5].resize((2000, 1500)), "JPEG", quality=80),
        hostile_images.png_with(metadata, images[6]),
        hostile_images.encoded(images[7], "JPEG")[:-2],
    ]


class Load:
    """Outcomes of valid requests."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._seconds: list[float] = []

    def p99_ms(self) -> float:
        """Return the 99th percentile of the answered requests' latencies."""
        return 1000 * float(np.percentile(self._seconds, 99)) if self._seconds else float("nan")

    def answered(self, seconds: float, wrong: str | None) -> None:
        """Count an answer; `wrong` describes its error, if any."""
        self.outcomes["answered"] += 1
        self._seconds.append(seconds)
        if wrong:
            self.wrong.append(wrong)


def valid_load(target: Target, expected: Expected, seconds: float, until: threading.Event | None = None) -> Load:
    """Run three closed-loop gRPC clients and one HTTP client, for some seconds or until an event."""
    load = Load()
    end = time.monotonic() + seconds

    def going_on() -> bool:
        return not until.is_set() if until is not None else time.monotonic() < end

    def over_grpc(first: int) -> None:
        number = first
        with Client(port=target.grpc_port, retries=0) as client:
            while going_on():
                number += 1
                image, method = number % len(expected.images), METHODS[number % len(METHODS)]
                began = time.monotonic()
                try:
                    answer = client.classify(expected.images[image], model=FIXED, cam=method, timeout_s=60)
                except (OverloadedError, ServerError) as error:
                    load.outcomes["refused" if isinstance(error, OverloadedError) else str(error)[:100]] += 1
                    time.sleep(0.05)
                    continue
                except TlcliError as error:
                    load.outcomes[str(error)[:200]] += 1
                    continue
                load.answered(time.monotonic() - began, expected.difference(image, answer.predictions[0], method))
                time.sleep(0.02)

    def over_http() -> None:
        number = 0
        while going_on():
            number += 1
            image = number % len(expected.images)
            began = time.monotonic()
            try:
                status, body = ask_over_http(target.http_port, expected.images[image])
            except (OSError, http.client.HTTPException) as error:
                load.outcomes[f"HTTP: {type(error).__name__}"] += 1
                time.sleep(0.05)
                continue
            if status == 200:
                best = SimpleNamespace(**json.loads(body)["predictions"][0])
                load.answered(time.monotonic() - began, expected.difference(image, best, None))
            else:
                load.outcomes["refused" if status in (429, 503) else f"HTTP {status}: {body[:100]!r}"] += 1
            time.sleep(0.05)

    threads = [*(threading.Thread(target=over_grpc, args=(first,)) for first in (0, 5, 10)), threading.Thread(target=over_http)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return load


def ask_over_http(port: int, image: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", f"/v1/classify?model={FIXED}", image)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


if __name__ == "__main__":
    main()
