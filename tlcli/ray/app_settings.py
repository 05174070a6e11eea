"""The `args` of the application: settings of `tlcli serve`, but for those that are Ray's to say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tlcli.contract.errors import SettingsError
from tlcli.contract.process.cores import usable_cores
from tlcli.service.repository.model_control import EXPLICIT
from tlcli.service.settings.server_settings import ServerSettings
from tlcli.service.settings.sources import configure_from

_LISTENS = "Ray's proxies listen: see grpc_options in the Serve config"
_HTTP = "HTTP is not answered here: `tlcli serve --http-port` does"
_TLS = "Ray's proxies answer without TLS: let what stands in front of them encrypt"
_METRICS = "Ray has metrics of its own: see docs/ray.md"
_STOPS = "Ray stops replicas: see graceful_shutdown_timeout_s in the Serve config"
ELSEWHERE = {
    "host": _LISTENS,
    "port": _LISTENS,
    "reuse_port": _LISTENS,
    "insecure": _LISTENS,
    "http_port": _HTTP,
    "tls_certificate": _TLS,
    "tls_key": _TLS,
    "tls_client_ca": _TLS,
    "metrics_port": _METRICS,
    "metrics_host": _METRICS,
    "pre_stop_s": _STOPS,
    "grace_s": _STOPS,
}
"""Settings of `tlcli serve` that are no replica's, with who has them."""


def read_args(args: Mapping[str, Any]) -> ServerSettings:
    """The settings of a replica.

    Raises:
        SettingsError: an unknown key, a value that will not do, a setting that is Ray's, or a path that would be another on each node.
    """
    settings = configure_from(args, "args", ELSEWHERE).settings
    if settings.model_control == EXPLICIT:
        raise SettingsError("args: model_control explicit: a load would reach one replica of several: expected fixed or poll")
    for name, path in (("models", settings.models), ("tokens_file", settings.tokens_file)):
        if path is not None and not path.is_absolute():
            raise SettingsError(f"args: {name} {path}: expected an absolute path, the same on every node")
    return settings


def fit_to(settings: ServerSettings, cpus: float) -> ServerSettings:
    """With as many threads as Ray has given the replica cores (`num_cpus`), where nothing is said of threads.

    Args:
        settings: of the replica.
        cpus: of the replica; 0 where it was given none, and may use what there is.
    """
    cores = max(1, int(cpus))
    if not cpus or cores >= usable_cores():
        return settings
    return settings.model_copy(update={"threads": settings.threads or cores, "image_threads": settings.image_threads or cores})
