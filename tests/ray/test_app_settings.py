"""What a Serve config may say to a replica."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.deploy.ray_cluster import CONFIG, DEPLOYMENT
from tests.service.settings.test_sources import OTHERS
from tlcli.contract.errors import SettingsError
from tlcli.contract.process.cores import usable_cores
from tlcli.ray.app_settings import ELSEWHERE, fit_to, read_args
from tlcli.service import ServerSettings
from tlcli.service.settings.server_settings import SETTINGS


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ({"max_batch": 4}, r"^args: max_batch: no such setting: did you mean max_batch_size\?"),
        ({"max_batch_size": 0}, r"^args: max_batch_size = 0: expected 1 to 1,000,000$"),
        ({"max_batch_size": "4"}, r"^args: max_batch_size = '4': expected a whole number$"),
        ({"limits": {"max_bytes": -1}}, r"^args: limits\.max_bytes = -1: expected 1 to "),
        ({"port": 8001}, r"^args: port: Ray's proxies listen: see grpc_options in the Serve config$"),
        ({"http_port": 8000}, r"^args: http_port: HTTP is not answered here"),
        ({"tls": {"key": "key.pem"}}, r"^args: tls\.key: Ray's proxies answer without TLS: let what stands in front of them encrypt$"),
        ({"grace_s": 3.0}, r"^args: grace_s: Ray stops replicas: see graceful_shutdown_timeout_s in the Serve config$"),
        ({"models": "models"}, r"^args: models models: expected an absolute path, the same on every node$"),
        ({}, r"^args: models models: expected an absolute path"),
        ({"models": "/srv/models", "tokens_file": "tokens"}, r"^args: tokens_file tokens: expected an absolute path"),
        ({"models": "/m", "model_control": "explicit"}, r"^args: model_control explicit: a load would reach one replica of several"),
    ],
)
def test_what_will_not_do_is_one_line(args: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem) as caught:
        read_args(args)
    assert "\n" not in str(caught.value)


def test_every_other_setting_is_taken() -> None:
    """None is passed over: it is a replica's, or refused."""
    others = {**OTHERS, "models": Path("/srv/models"), "tokens_file": Path("/run/tokens"), "model_control": "poll"}
    for name in SETTINGS:
        given = others[name]
        args = {"models": "/srv/models", name: str(given) if isinstance(given, Path) else given}
        if name in ELSEWHERE:
            with pytest.raises(SettingsError, match=rf"^args: {name}: "):
                read_args(args)
        else:
            assert getattr(read_args(args), name) == given


def test_threads_are_those_of_the_cores_that_ray_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, cores = ServerSettings(), usable_cores()
    monkeypatch.setattr("tlcli.ray.app_settings.usable_cores", lambda: 8)
    assert cores >= 1
    assert [(one.threads, one.image_threads) for one in (fit_to(settings, cpus) for cpus in (0, 0.5, 1, 3.0, 8, 16))] == [
        (0, 0),
        (1, 1),
        (1, 1),
        (3, 3),
        (0, 0),
        (0, 0),
    ]
    asked = ServerSettings(threads=5, image_threads=2)
    assert fit_to(asked, 3) == asked


def test_the_config_that_is_shipped_can_be_read() -> None:
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
    (application,) = config.applications
    settings = read_args(application.args)
    (deployment,) = application.deployments
    assert deployment.name == DEPLOYMENT
    assert deployment.graceful_shutdown_timeout_s == settings.grace_s
    assert deployment.autoscaling_config["target_ongoing_requests"] == settings.max_batch_size
