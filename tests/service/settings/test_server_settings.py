"""Tests of the server settings: ranges, combinations that are rejected, and addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tlcli.contract.errors import DeviceError, SettingsError
from tlcli.service import ServerSettings, in_background
from tlcli.service.system.addresses import join_address


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"port": 65536}, "port 65536: expected 1 to 65535"),
        ({"port": -1}, "port -1"),
        ({"threads": -1}, "threads -1: expected 0 to 1,024"),
        ({"image_threads": -2}, "image_threads -2"),
        ({"grace_s": -0.5}, "grace_s -0.5"),
        ({"pre_stop_s": float("nan")}, "pre_stop_s nan"),
        ({"max_maps": 0}, "max_maps 0: expected 1 to 1,000,000"),
        ({"stream_in_flight": 0}, "stream_in_flight 0"),
        ({"device": "tpu"}, "device tpu: expected auto, cpu or cuda"),
        ({"models": 1}, "models 1: expected a path"),
        ({"models": ""}, "models : expected a path"),
        ({"max_maps": True}, "max_maps True: expected a whole number"),
        ({"limits_max_bytes": 0}, "limits_max_bytes 0: expected 1 to 1,073,741,824"),
    ],
)
def test_values_out_of_range_are_refused_by_name(setting: dict[str, Any], expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        ServerSettings(**setting)


def test_an_unknown_setting_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match=r"^prot 1: no such setting$"):
        ServerSettings(prot=1)  # type: ignore[call-arg]


def test_a_path_may_be_a_text() -> None:
    assert ServerSettings(models="folder") == ServerSettings(models=Path("folder"))  # type: ignore[arg-type]


def test_a_device_that_is_not_there_is_refused_at_the_start(one_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlcli.contract.model.onnx_model._cuda_problem", lambda: "no NVIDIA device on this machine")
    expected = "--device cuda: no NVIDIA device"
    with pytest.raises(DeviceError, match=expected), in_background(ServerSettings(models=one_model, port=0, device="cuda")):
        pass


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"host": "0.0.0.0"}, r"^host 0\.0\.0\.0: requests would travel unencrypted beyond this machine: set tls_certificate and tls_key"),
        ({"host": "::"}, "^host ::"),
        ({"host": "server.example"}, r"^host server\.example"),
        ({"host": "192.0.2.1", "tokens_file": Path("tokens")}, "requests and their tokens would travel unencrypted"),
        ({"tls_certificate": Path("server.pem")}, "^tls_key is not set: set both the certificate and its key"),
        ({"tls_key": Path("server.key")}, "^tls_certificate is not set"),
        ({"tls_client_ca": Path("ca.pem")}, "^tls_client_ca is set without tls_certificate"),
    ],
)
def test_settings_that_would_not_be_safe_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        ServerSettings(**settings)


def test_what_is_safe_or_said_to_be_is_taken() -> None:
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        ServerSettings(host=host, tokens_file=Path("tokens"))
    ServerSettings(host="0.0.0.0", insecure=True)
    ServerSettings(host="0.0.0.0", tls_certificate=Path("server.pem"), tls_key=Path("server.key"))


def test_addresses() -> None:
    assert join_address("127.0.0.1", 8001) == "127.0.0.1:8001"
    assert join_address("::1", 8001) == "[::1]:8001"
