"""What a server is told before it starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from contract.errors import SettingsError
from contract.pictures import PictureLimits


@dataclass(frozen=True)
class ServerSettings:
    """Frozen: one object describes a server from its start to its end.

    models: the model repository, `<models>/<name>/<version>/model.onnx`.
    host, port: where it listens; port 0 takes a free one, which the log and `on_listening` tell.
    device: `auto`, `cpu` or `cuda`.
    threads: of ONNX Runtime, for each model; 0 takes every core this process may use.
    picture_threads: that decode, resize and draw; 0 takes every core this process may use.
    limits: what a picture may cost; a request may be this large too.
    max_batch_size: how many pictures one run of a model takes at most.
    max_queue_delay_ms: how long a picture waits for others to share its run while the model is idle. 0: not at all; what comes
        while a run is under way shares the next one even so.
    max_queue_size: how many pictures may wait for one model; the rest is refused with RESOURCE_EXHAUSTED.
    max_maps: how many classes one request may have explained: each costs a map, and a PNG if it is drawn.
    stream_in_flight: how many pictures of one stream are worked on at a time.
    pre_stop_s: how long requests are still taken after health says NOT_SERVING, so that load balancers
        have time to see it and send their requests elsewhere. 0 where nothing stands in front.
    grace_s: how long requests in flight may take to finish at a stop; then they are cancelled.

    Raises:
        SettingsError: a value outside its range.
    """

    models: Path = Path("models")
    host: str = "127.0.0.1"
    port: int = 8001
    device: str = "auto"
    threads: int = 0
    picture_threads: int = 0
    limits: PictureLimits = field(default_factory=PictureLimits)
    max_batch_size: int = 8
    max_queue_delay_ms: float = 0.0
    max_queue_size: int = 64
    max_maps: int = 100
    stream_in_flight: int = 8
    pre_stop_s: float = 0.0
    grace_s: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"port {self.port}: expected 1 to 65535, or 0 for a free one")
        for name in ("threads", "picture_threads", "max_queue_delay_ms", "pre_stop_s", "grace_s"):
            if not getattr(self, name) >= 0:
                raise SettingsError(f"{name} {getattr(self, name)}: expected 0 or more")
        for name in ("max_batch_size", "max_queue_size", "max_maps", "stream_in_flight"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} {getattr(self, name)}: expected 1 or more")


def join_address(host: str, port: int) -> str:
    """`host:port` as gRPC reads it, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
