"""Web pages that try to use a server on their visitor's machine: under another name, or from another site."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.service.http_requests import Asking, http_in_background
from tests.helpers.service.sample_images import RED, encode, scene
from tests.helpers.service.toy_model import ToyModel
from tlcli.service import ServerSettings
from tlcli.service.rest.access_control import AllowedHosts

IMAGE = encode(scene(RED, (30, 20, 90, 70)), "JPEG")
LOAD, UNLOAD = "/v2/repository/models/toy/load", "/v2/repository/models/toy/unload"
CLASSIFY = "/v1/classify"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hosts")
    ToyModel.make(seed=1).save(folder / "toy/1/model.onnx", "toy")
    return folder


@pytest.fixture(scope="module")
def port(models: Path) -> Iterator[int]:
    with http_in_background(ServerSettings(models=models, port=0, http_port=0, model_control="explicit")) as port:
        yield port


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "x",
        "[::1",
        "evil.example:80@localhost",
        "localhost/x",
    ],
)
def test_another_host_is_refused_on_every_path(port: int, host: str) -> None:
    host = host.format(port=port)
    with Asking(port) as asking:
        for path in (LOAD, UNLOAD, CLASSIFY, "/v2/repository/index", "/nosuch"):
            status, line = asking.post(path, IMAGE, Host=host, Origin=f"http://{host}").refusal
            assert status == 403
            assert line == f"host {host!r} is not a name of this server: use its address, or add the name to allowed_hosts"
        assert asking.get("/v2", Host=host).status == 403
        assert asking.get("/v2/health/ready", Host=host).status == 200
        assert asking.post(CLASSIFY, IMAGE).status == 200


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:{port}", "app.localhost", "127.0.0.1:{port}", "[::1]:{port}", "192.0.2.7"])
def test_loopback_names_and_addresses_are_allowed(port: int, host: str) -> None:
    host = host.format(port=port)
    with Asking(port) as asking:
        assert asking.post(CLASSIFY, IMAGE, Host=host).status == 200
        assert asking.post(LOAD, Host=host, Origin=f"http://{host}").status == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:1", "https://127.0.0.1", "chrome-extension://abc", "", "http://["]
)
def test_a_foreign_origin_may_not_post(port: int, origin: str) -> None:
    expected = (403, "the request comes from a web page of another site: send it from a program")
    with Asking(port) as asking:
        for path in (LOAD, UNLOAD, CLASSIFY):
            assert asking.post(path, IMAGE, Origin=origin).refusal == expected
        for path in (LOAD, UNLOAD):
            assert asking.post(path, Origin=origin, Sec_Fetch_Site="same-origin").refusal == expected
        answer = asking.get("/v2", Origin=origin)
        assert answer.status == 200
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        asked = asking.ask("OPTIONS", LOAD, None, Origin=origin, Access_Control_Request_Method="POST")
        assert asked.status == 405
        assert not [name for name in asked.headers if name.lower().startswith("access-control")]
        assert asking.post(CLASSIFY, IMAGE).status == 200


def test_allowed_names_may_control_models(models: Path) -> None:
    settings = ServerSettings(models=models, port=0, http_port=0, model_control="explicit", allowed_hosts="models.example, other.example")
    with http_in_background(settings) as port, Asking(port) as asking:
        assert asking.post(LOAD, Host="models.example", Origin="https://models.example").status == 200
        assert asking.post(LOAD, Origin="https://other.example").status == 200
        assert asking.post(LOAD, Host="evil.example").status == 403


def test_on_other_addresses_any_host_is_allowed_and_no_page_may_control_models(models: Path) -> None:
    settings = ServerSettings(models=models, host="0.0.0.0", insecure=True, port=0, http_port=0, model_control="explicit")
    with http_in_background(settings) as port, Asking(port) as asking:
        assert asking.post(CLASSIFY, IMAGE, Host="models.example", Origin="http://models.example").status == 200
        assert asking.post(LOAD, Host="models.example").status == 200
        assert asking.post(LOAD, Host="models.example", Origin="http://models.example").status == 403
        assert asking.post(LOAD, Host=f"10.0.0.1:{port}", Origin=f"http://10.0.0.1:{port}").status == 200


def test_a_star_allows_any_name() -> None:
    hosts = AllowedHosts("*", "127.0.0.1")
    assert hosts.includes("evil.example")
    assert not hosts.may_control("http://evil.example", "evil.example")
