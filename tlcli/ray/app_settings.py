"""Settings of the Ray application, which are the settings of `tlcli serve` except those that Ray itself controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tlcli.contract.errors import SettingsError
from tlcli.contract.process.cores import usable_cores
from tlcli.service.repository.model_control import EXPLICIT
from tlcli.service.settings.server_settings import ServerSettings
from tlcli.service.settings.sources import configure_from

_LISTENS = "Ray's proxies listen for requests: see grpc_options in the Serve config"
_HTTP = "the Ray application has no HTTP endpoint: use `tlcli serve --http-port`"
_TLS = "Ray's proxies do not support TLS: terminate TLS in front of them"
_METRICS = "Ray exports its own metrics: see docs/ray.md"
_STOPS = "Ray stops replicas: see graceful_shutdown_timeout_s in the Serve config"
NOT_SUPPORTED = {
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
"""Settings of `tlcli serve` that a replica does not accept, each with the alternative."""


def read_args(args: Mapping[str, Any]) -> ServerSettings:
    """Read the settings of a replica from the application's `args`.

    Raises:
        SettingsError: a key is unknown, a value is invalid, a setting is controlled by Ray, or a path is relative and would therefore
            differ between nodes.
    """
    settings = configure_from(args, "args", NOT_SUPPORTED).settings
    if settings.model_control == EXPLICIT:
        raise SettingsError("args: model_control explicit: a load request would reach only one replica: expected fixed or poll")
    for name, path in (("models", settings.models), ("tokens_file", settings.tokens_file)):
        if path is not None and not path.is_absolute():
            raise SettingsError(f"args: {name} {path}: expected an absolute path, the same on every node")
    return settings


def fit_to(settings: ServerSettings, cpus: float) -> ServerSettings:
    """Limit the thread counts to the CPU cores that Ray assigned to the replica (`num_cpus`). Counts that are set explicitly are kept.

    Args:
        settings: settings of the replica.
        cpus: number of cores assigned to the replica; 0 if it may use all cores.
    """
    cores = max(1, int(cpus))
    if not cpus or cores >= usable_cores():
        return settings
    return settings.model_copy(update={"threads": settings.threads or cores, "image_threads": settings.image_threads or cores})
