"""A fine-tuning that is interrupted, or runs out of disk space, says how to go on; the command that it prints does."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.training.tiny_training import BACKBONE, put_colours

REPOSITORY = Path(__file__).parents[2]
ALWAYS = ["--backbone", BACKBONE, "--weights", "none", "--batch-size", "8", "--workers", "2", "--device", "cpu"]


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "TLCLI_CACHE": str(home / "cache"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    """A command in a process group of its own, as a terminal starts it."""
    command = [sys.executable, "-m", "tlcli", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=home, env=environment(home), start_new_session=True
    )


def run(home: Path, *arguments: str) -> tuple[int, str, str]:
    with start(home, *arguments) as process:
        out, said = process.communicate(timeout=300)
    return process.returncode, out, said


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    ends = time.monotonic() + 120
    while not ready() and time.monotonic() < ends and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()


def told_command(said: str, how: str) -> list[str]:
    """The words after `tlcli` of the command that resumes, which the last line gives."""
    line = said.strip().splitlines()[-1]
    found = re.fullmatch(rf"Error: {how}; `tlcli (finetune --resume .*)` resumes it", line)
    assert found, said
    assert "Traceback" not in said
    return shlex.split(found[1])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home of runs")
    put_colours(home / "data", train=200, val=4, test=0)
    return home


def test_ctrl_c_while_features_are_computed_keeps_them_and_says_how_to_resume(home: Path) -> None:
    asked = [*ALWAYS, "--image-size", "224", "--epochs", "2", "--dataset", "data"]
    with start(home, "finetune", *asked, "--output", "runs/two words", "--models", "my models", "-q", "--no-export") as process:
        features = home / "cache" / "features"
        wait_for(lambda: any(path.stat().st_size > 20_000 for path in features.glob("*.partial")), process)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    command = told_command(said, "stopped by Ctrl-C")
    assert command == ["finetune", "--resume", str(home / "runs" / "two words"), "--models", "my models", "--no-export", "--quiet"]
    assert list(features.glob("*.partial")), "what was computed is kept"
    code, _, said = run(home, *[word for word in command if word != "--quiet"])
    assert code == 0, said
    assert re.search(r"Features of the train part: continuing an interrupted computation, \d+ images done", said)
    # Resumed once more, a finished run is left alone.
    code, out, said = run(home, "finetune", "--resume", "runs/two words")
    assert code == 0
    assert "this run is finished: there is nothing to resume" in said
    assert "to export it: `tlcli export 'runs/two words'`; to train longer, start a new run with `--from" in said
    assert "val_top1" in out
    assert not (home / "models").exists()


def test_sigterm_while_all_layers_train_says_how_to_resume(home: Path) -> None:
    asked = [
        *ALWAYS,
        "--image-size",
        "32",
        "--mode",
        "full",
        "--epochs",
        "300",
        "--dataset",
        "data",
        "--output",
        "runs/full",
        "--no-export",
    ]
    with start(home, "finetune", *asked) as process:
        wait_for((home / "runs" / "full" / "resume.safetensors").exists, process)
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert told_command(said, "stopped by SIGTERM") == ["finetune", "--resume", str(home / "runs" / "full"), "--no-export"]


def test_ctrl_c_before_a_run_is_begun_says_that_there_is_none(home: Path) -> None:
    asked = [*ALWAYS, "--dataset", "data", "--output", "runs/none"]
    script = "import sys, tlcli.training.data.load as d, tlcli.training.finetune_run as f, os, signal\n"
    script += "f.load_dataset = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)\n"
    script += f"sys.argv = ['tlcli', 'finetune', *{asked!r}]\nimport tlcli.__main__ as m\nm.main()\n"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=home, env=environment(home), timeout=120, check=False
    )
    assert done.returncode == 130
    assert done.stderr.strip().splitlines()[-1] == "Error: stopped by Ctrl-C; no run was started: run the same command again"
    assert not (home / "runs" / "none").exists()


# ---- a disk that is full

FULL_DISK = """
set -u
tlcli() { "$PYTHON" -m tlcli "$@"; echo "exit code $?" >&2; }
mkdir small; mount -t tmpfs -o size=300k none small
tlcli finetune --backbone test_resnet --weights none --batch-size 8 --workers 0 --device cpu --image-size 32 \
    --mode full --epochs 2 --dataset data --limit 8 --output small/run --no-export -q
mount -o remount,size=20m small
tlcli finetune --resume small/run --no-export -q
mkdir few; mount -t tmpfs -o size=100k none few
tlcli export small/run --models few/models --cam gradcam --check-images 2 -q
tlcli export small/run --models models --name m --cam gradcam --check-images 2 -q
head -c 102400 /dev/zero > few/fill
tlcli predict models/m data/val/red/0.png --csv few/answers.csv
tlcli predict models/m data/val/red/0.png --cam gradcam --output few/overlays
tlcli predict models/m data/val/red/0.png > /dev/full
ls -A few few/models >&2
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts small file systems")
def test_a_full_disk_is_named_and_what_was_written_is_kept(tmp_path: Path) -> None:
    put_colours(tmp_path / "data", train=8, val=2, test=0)
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", FULL_DISK],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment(tmp_path), "PYTHON": sys.executable},
        timeout=600,
        check=False,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("mounting is not allowed here")
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith(("Error", "exit code"))]
    full = "No space left on device: free disk space, then"
    run_path = tmp_path / "small" / "run"
    assert lines == [
        f"Error: {run_path / 'resume.safetensors'}: epoch 1 cannot be saved: {full} `tlcli finetune --resume {run_path}` resumes after"
        " the last saved epoch",
        "exit code 2",
        "exit code 0",
        lines[3],
        "exit code 1",
        "exit code 0",
        f"Error: few/answers.csv: {full} try again",
        "exit code 1",
        lines[8],
        "exit code 1",
        f"Error: standard output: {full} try again",
        "exit code 1",
    ]
    assert re.fullmatch(rf"Error: few/models/run\S*: {full} try again", lines[3])
    assert re.fullmatch(rf"Error: few/overlays/0\.gradcam\.\w+\.png: {full} try again", lines[8])
    assert done.stderr.endswith("few:\nfill\nmodels\noverlays\n\nfew/models:\n"), "nothing is left of what did not fit"
