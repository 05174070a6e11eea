"""Training on several machines: the commands in docs/deploying.md and deploy/training work."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.test_docs import LINES
from tests.helpers.deploy.manifests import DEPLOY, everything, pod_spec
from tests.helpers.training.tiny_training import put_colours
from tlcli.training.runs.run_folder import read_results

JOB = everything()["training/job.yaml Job"]
POD: Any = pod_spec(JOB)
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(DEPLOY.parent)}


def told(script: str, tmp_path: Path, index: int) -> list[str]:
    """Return torchrun's arguments on a machine, with the volume in `tmp_path`."""
    stub = tmp_path / "bin" / "torchrun"
    stub.parent.mkdir(exist_ok=True)
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    environment = {"PATH": f"{stub.parent}:/usr/bin:/bin", "JOB_COMPLETION_INDEX": str(index)}
    command = [*POD["containers"][0]["command"], script.replace("/shared/", f"{tmp_path}/")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_job_begins_and_goes_on(tmp_path: Path) -> None:
    (script,) = POD["containers"][0]["args"]
    run = tmp_path / "runs" / "flowers"
    begun = told(script, tmp_path, 0)
    assert begun[begun.index("-m") :][:5] == ["-m", "tlcli", "finetune", "--backbone", "resnet50"]
    assert begun[-2:] == ["--output", str(run)]
    run.mkdir(parents=True)
    assert told(script, tmp_path, 0) == begun, "nothing has begun where no config is"
    (run / "config.json").touch()
    gone_on = told(script, tmp_path, 0)
    assert gone_on[gone_on.index("-m") :] == ["-m", "tlcli", "finetune", "--resume", str(run)]
    for number, first in ((0, "true"), (1, "false")):
        assert f"is_host={first}," in " ".join(told(script, tmp_path, number))


def test_the_job_is_as_many_machines_as_it_says(tmp_path: Path) -> None:
    (script,) = POD["containers"][0]["args"]
    words = told(script, tmp_path, 0)
    flags = dict(pairwise(words))
    spec, service = JOB["spec"], everything()["training/job.yaml Service"]
    assert int(flags["--nnodes"]) == spec["completions"] == spec["parallelism"]
    assert spec["completionMode"] == "Indexed"
    assert flags["--nproc-per-node"] == POD["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    host, _, port = flags["--rdzv-endpoint"].partition(":")
    assert host == f"{JOB['metadata']['name']}-0.{service['metadata']['name']}"
    assert POD["subdomain"] == service["metadata"]["name"]
    assert [one["port"] for one in service["spec"]["ports"]] == [int(port)]
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": JOB["metadata"]["name"]}
    claimed = {one["persistentVolumeClaim"]["claimName"] for one in POD["volumes"] if "persistentVolumeClaim" in one}
    assert claimed == {everything()["training/volume.yaml PersistentVolumeClaim"]["metadata"]["name"]}


def test_its_settings_are_tlcli_s(tmp_path: Path) -> None:
    (script,) = POD["containers"][0]["args"]
    words = told(script, tmp_path, 0)
    command = [sys.executable, *words[words.index("-m") :], "--print-config"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 'backbone = "resnet50"' in done.stdout


@pytest.mark.slow
def test_two_machines_train_one_network(tmp_path: Path) -> None:
    """Run the page's command once per machine, both on this machine, with generated images and a small network."""
    (line,) = [line for line in LINES if line.startswith("torchrun")]
    put_colours(tmp_path / "data" / "flowers", train=8, val=3)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    changed = line.replace("first:29400", f"127.0.0.1:{port}").replace("/shared", str(tmp_path)).replace("resnet50", "lenet5")
    assert re.search(r"--nnodes 2\b", changed)
    words = [*shlex.split(changed), "--weights", "none", "--epochs", "1", "--device", "cpu", "--no-export"]
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1", "TLCLI_CACHE": str(tmp_path / "cache")}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    machines = [subprocess.Popen(words, cwd=tmp_path, env=environment, **pipes) for _ in range(2)]
    tables = []
    for machine in machines:
        table, said = machine.communicate(timeout=300)
        assert machine.returncode == 0, said[-2000:]
        tables.append(table)
    assert sorted(map(bool, tables)) == [False, True], "one of them speaks"
    results = read_results(tmp_path / "runs" / "flowers")
    assert results is not None
    assert "val_top1" in results.metrics
    assert "val_top1" in "".join(tables)
