from __future__ import annotations

from typing import Any

import pytest

from contract.errors import DeviceError, SettingsError
from service import ServerSettings, in_background
from service.settings import join_address


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"port": 65536}, "port 65536: expected 1 to 65535"),
        ({"port": -1}, "port -1"),
        ({"threads": -1}, "threads -1: expected 0 or more"),
        ({"picture_threads": -2}, "picture_threads -2"),
        ({"grace_s": -0.5}, "grace_s -0.5"),
        ({"pre_stop_s": float("nan")}, "pre_stop_s nan"),
        ({"max_maps": 0}, "max_maps 0: expected 1 or more"),
        ({"stream_in_flight": 0}, "stream_in_flight 0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(setting: dict[str, Any], expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        ServerSettings(**setting)


def test_a_device_that_is_none_is_refused_at_the_start(one_model: Any) -> None:
    with pytest.raises(DeviceError, match="unknown device 'tpu'"), in_background(ServerSettings(models=one_model, port=0, device="tpu")):
        pass


def test_addresses() -> None:
    assert join_address("127.0.0.1", 8001) == "127.0.0.1:8001"
    assert join_address("::1", 8001) == "[::1]:8001"
