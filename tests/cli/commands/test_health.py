"""`tlcli health`: one line and an exit code, in time, and light enough to be run every few seconds."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.service.made_certificates import make
from tests.helpers.service.toy_model import ToyModel
from tlcli.service import ServerSettings, in_background

HEAVY = ("numpy", "onnxruntime", "PIL", "pydantic", "rich", "tlcli.service.server")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("health")
    ToyModel.make(seed=1).save(folder / "toy/1/model.onnx", "toy")
    (folder / "broken/1").mkdir(parents=True)
    (folder / "broken/1/model.onnx").write_bytes(b"this is no model")
    return folder


@pytest.fixture(scope="module")
def port(models: Path) -> Iterator[int]:
    with in_background(ServerSettings(models=models, port=0)) as port:
        yield port


def health(*arguments: object, **environment: object) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "tlcli", "health", *map(str, arguments)]
    variables = {name: str(value) for name, value in environment.items()}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **variables})
    return done.returncode, done.stdout, done.stderr


def test_a_server_that_serves(port: int) -> None:
    assert health("--port", port) == (0, f"127.0.0.1:{port}: SERVING\n", "")
    assert health("--port", port, "--model", "toy") == (0, f"127.0.0.1:{port}, model 'toy': SERVING\n", "")


def test_a_model_that_is_broken_and_one_that_is_not_there(port: int) -> None:
    assert health("--port", port, "--model", "broken") == (1, "", f"127.0.0.1:{port}, model 'broken': NOT_SERVING\n")
    code, said, error = health("--port", port, "--model", "nosuch")
    assert (code, said) == (1, "")
    assert error.startswith(f"127.0.0.1:{port}, model 'nosuch': no such model on the server")
    assert error.count("\n") == 1


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    code, said, error = health("--port", port)
    assert (code, said) == (1, "")
    assert error.startswith(f"127.0.0.1:{port}: no server responds: check --host and --port")
    assert error.count("\n") == 1


def test_what_the_environment_says_holds_where_no_flag_does(port: int) -> None:
    assert health(TLCLI_HEALTH_PORT=port, TLCLI_HEALTH_TIMEOUT=2) == (0, f"127.0.0.1:{port}: SERVING\n", "")
    assert health("--port", port, TLCLI_HEALTH_PORT=1, TLCLI_HEALTH_MODEL="toy") == (0, f"127.0.0.1:{port}, model 'toy': SERVING\n", "")
    assert health(TLCLI_HEALTH_PORT=port, TLCLI_HEALTH_MODEL="broken")[0] == 1
    code, said, error = health(TLCLI_HEALTH_PORT="much")
    assert (code, said) == (2, "")
    assert "'much' is not a valid integer" in error


def test_one_that_does_not_answer_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        begun = time.monotonic()
        code, said, error = health("--port", port, "--timeout", "0.5")
        assert time.monotonic() - begun < 5
    assert (code, said) == (1, "")
    assert error == f"127.0.0.1:{port}: no answer within 0.5 s (--timeout)\n"


def test_with_tls(models: Path, tmp_path: Path) -> None:
    authority = make("authority", is_authority=True)
    ca = authority.save(tmp_path, "authority")["tls_certificate"]
    client = make("client", authority).save(tmp_path, "client")
    settings = ServerSettings(models=models, port=0, tls_client_ca=ca, **make("server", authority).save(tmp_path, "server"))
    with in_background(settings) as port:
        assert (
            health("--port", port, "--tls-ca", ca, "--tls-certificate", client["tls_certificate"], "--tls-key", client["tls_key"])[0] == 0
        )
        shown = {f"TLCLI_HEALTH_{name.upper()}": client[name] for name in ("tls_certificate", "tls_key")}
        assert health(TLCLI_HEALTH_PORT=port, TLCLI_HEALTH_TLS_CA=ca, **shown)[0] == 0  # as an image is told
        for others in ((), ("--tls",), ("--tls-ca", ca)):
            code, said, error = health("--port", port, *others)
            assert (code, said, error.count("\n")) == (1, "", 1)


def test_it_is_light(port: int) -> None:
    program = (
        "import sys, tlcli.__main__\n"
        f"sys.argv = ['tlcli', 'health', '--port', '{port}']\n"
        "tlcli.__main__.main()\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.endswith("[]\n")
    took = []
    for _ in range(5):
        begun = time.monotonic()
        health("--port", port)
        took.append(time.monotonic() - begun)
    assert statistics.median(took) < 0.8, took  # 0.2 s where nothing else runs
