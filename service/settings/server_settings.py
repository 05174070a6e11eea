"""What a server is told before it starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tlcli.contract.errors import SettingsError
from tlcli.contract.images.decoding import ImageLimits
from tlcli.service.repository.model_control import MODES
from tlcli.service.repository.version_policy import VersionPolicy
from tlcli.service.settings.field import declared, told, told_of_each
from tlcli.service.system.addresses import is_loopback
from tlcli.service.telemetry.logs import FORMATS

_LONGEST_S = 1_000_000
"""Eleven days. gRPC counts milliseconds in 31 bits, and no clock counts to infinity."""

_MOST_THREADS = 1024
_MOST = 1_000_000

_MAX_MESSAGE_BYTES = 1024**3
_MOST_BYTES = 1024**5
"""gRPC counts a message's bytes in 31 bits."""


@dataclass(frozen=True)
class ServerSettings:
    """Frozen: one object describes a server from its start to its end. What each setting is for stands beside it.

    `tlcli.service.settings.sources` reads them from a file, the environment and flags: a field here is a key, a variable and a flag.

    Raises:
        SettingsError: a value outside its range, or one that contradicts another.
    """

    models: Path = field(default=Path("models"), metadata=told("The model repository, `<models>/<name>/<version>/model.onnx`."))
    host: str = field(default="127.0.0.1", metadata=told("The address to listen on; by default only this machine reaches it."))
    port: int = field(
        default=8001,
        metadata=told("0 takes a free one, which the log tells.", low=0, high=65535, expected="1 to 65535, or 0 for a free one"),
    )
    http_port: int | None = field(
        default=None,
        metadata=told(
            "Answer over HTTP too, here; not set: over gRPC alone. 0 takes a free one, which the log tells.",
            low=0,
            high=65535,
            expected="1 to 65535, or 0 for a free one",
        ),
    )
    allowed_hosts: str | None = field(
        default=None,
        metadata=told(
            "Names of this server that HTTP requests may ask for, such as models.example, with commas between them; * for any. IP"
            " addresses and localhost are always taken. Not set: those alone on a loopback address, any name on another."
        ),
    )
    reuse_port: bool = field(
        default=False,
        metadata=told("Share the port with another server that was told so too: the new one listens before the old one stops."),
    )
    insecure: bool = field(default=False, metadata=told("Listen beyond this machine without TLS: for where something in front encrypts."))
    tls_certificate: Path | None = field(
        default=None, metadata=told("The server's certificate and those between it and its authority, PEM. Read anew when it changes.")
    )
    tls_key: Path | None = field(default=None, metadata=told("The certificate's private key, PEM, without a password."))
    tls_client_ca: Path | None = field(
        default=None, metadata=told("Certificates of authorities, PEM: a client must show a certificate of one of them.")
    )
    tokens_file: Path | None = field(
        default=None, metadata=told("Tokens, one a line: a request must carry one of them. Read anew when it changes.")
    )
    versions: str = field(
        default="all",
        metadata=told("Which versions of each model are served: all, latest, latest:N, or numbers such as 1,3; and those with a label."),
    )
    model_control: str = field(
        default="fixed",
        metadata=told("Who changes what is served: nobody, clients by the protocol's loads and unloads, or the folder.", choices=MODES),
    )
    poll_s: float = field(
        default=5.0, metadata=told("How often the folder is looked at with model_control poll.", low=0.01, high=_LONGEST_S)
    )
    device: str = field(default="auto", metadata=told("Where to compute.", choices=("auto", "cpu", "cuda")))
    tf32: bool = field(
        default=False,
        metadata=told(
            "On a GPU, multiply float32 numbers in TF32, as PyTorch's convolutions do: two to four times as fast, and maps are no longer"
            " a CPU's."
        ),
    )
    threads: int = field(
        default=0,
        metadata=told(
            "Of ONNX Runtime, for each model; 0 takes every core this process may use, or one for a model whose run takes a millisecond.",
            low=0,
            high=_MOST_THREADS,
        ),
    )
    image_threads: int = field(
        default=0, metadata=told("That decode, resize and draw; 0 takes every core this process may use.", low=0, high=_MOST_THREADS)
    )
    limits: ImageLimits = field(
        default_factory=ImageLimits,
        metadata=told_of_each(
            max_bytes=told("Of an encoded image; a request may be this large too.", low=1, high=_MAX_MESSAGE_BYTES),
            max_pixels=told("Width times height of an image, read before it is decoded.", low=1),
        ),
    )
    max_image_s: float = field(
        default=300.0,
        metadata=told(
            "How long an image may take, from its place in the queue to its answer; then it is refused. 0: as long as it takes.",
            low=0,
            high=_LONGEST_S,
        ),
    )
    max_decode_s: float = field(
        default=2.0,
        metadata=told(
            "Seconds of processor time that decoding an image may take; then it is refused. Files whose structure does not bound the time"
            " are decoded in a process of their own.",
            low=0.01,
            high=_LONGEST_S,
        ),
    )
    max_memory_bytes: int = field(
        default=0,
        metadata=told(
            "Memory of all requests together: bodies, decoded images, drawings, runs of a size other than the model's own. A request waits"
            " up to 2 s for it, then is refused. 0 takes half of the container's limit, or of the machine's memory without one.",
            low=0,
            high=_MOST_BYTES,
        ),
    )
    max_message_bytes: int = field(
        default=0,
        metadata=told(
            "Of a request, where several images come in one; each is held to its own limits. 0 takes what the largest image needs.",
            low=0,
            high=_MAX_MESSAGE_BYTES,
        ),
    )
    max_batch_size: int = field(default=8, metadata=told("Images in one run of a model, at most.", low=1, high=_MOST))
    max_queue_delay_ms: float = field(
        default=0.0,
        metadata=told(
            "How long an image waits for others to share its run while the model is idle. 0: not at all; what comes while a run is under"
            " way shares the next one even so.",
            low=0,
            high=_MOST,
        ),
    )
    max_queue_size: int = field(
        default=64,
        metadata=told("Images that may wait for one model; others are refused, with the time after which to ask again.", low=1, high=_MOST),
    )
    max_score_cams: int = field(
        default=16,
        metadata=told(
            "Score-CAMs of one model that may be in progress or wait; others are refused. The oldest goes first, in steps between images.",
            low=1,
            high=_MOST,
        ),
    )
    max_maps: int = field(
        default=100,
        metadata=told("Classes that one request may have explained: each costs a map, and a PNG if it is drawn.", low=1, high=_MOST),
    )
    stream_in_flight: int = field(default=8, metadata=told("Images of one stream that are worked on at a time.", low=1, high=_MOST))
    stream_idle_s: float = field(
        default=300.0,
        metadata=told(
            "How long nothing may come on a stream, or be taken from it; then it ends. What the server works on counts as moving."
            " 0: any time.",
            low=0,
            high=_LONGEST_S,
        ),
    )
    max_connection_age_s: float = field(
        default=0.0,
        metadata=told(
            "How long a client keeps a gRPC connection before it is asked to connect anew, so that it finds servers that were added; with a"
            " retry policy it loses no request. 0: as long as it likes.",
            low=0,
            high=_LONGEST_S,
        ),
    )
    max_connections: int = field(
        default=1024,
        metadata=told(
            "Connections that each protocol has open at a time, or fewer where the system allows fewer open files; others are refused.",
            low=1,
            high=65536,
        ),
    )
    max_streams: int = field(
        default=256,
        metadata=told("Calls that one gRPC connection has under way at a time; its client holds others back.", low=1, high=65536),
    )
    pre_stop_s: float = field(
        default=0.0,
        metadata=told(
            "How long requests are still taken after health says NOT_SERVING, so that load balancers see it and send theirs elsewhere."
            " 0 where nothing stands in front.",
            low=0,
            high=_LONGEST_S,
        ),
    )
    grace_s: float = field(
        default=30.0,
        metadata=told("How long requests in flight may take to finish at a stop; then they are cancelled.", low=0, high=_LONGEST_S),
    )
    metrics_port: int | None = field(
        default=None,
        metadata=told(
            "Answer Prometheus over HTTP here; not set: no metrics. 0 takes a free one, which the log tells.",
            low=0,
            high=65535,
            expected="1 to 65535, or 0 for a free one",
        ),
    )
    metrics_host: str = field(default="127.0.0.1", metadata=told("The address for metrics; they travel unencrypted."))
    otel_endpoint: str | None = field(
        default=None,
        metadata=told("Send traces to this OpenTelemetry collector, http://HOST:PORT; not set: what OTEL_EXPORTER_OTLP_ENDPOINT says."),
    )
    log_format: str = field(default="text", metadata=told("Lines for people, or a JSON object a line.", choices=FORMATS))
    log_requests: bool = field(default=False, metadata=told("A line in the log for each request."))

    def __post_init__(self) -> None:
        for one in SETTINGS:
            if problem := one.problem(one.of(self)):
                raise SettingsError(f"{one.name} {one.of(self)}: {problem}")
        if self.http_port == self.port != 0:
            raise SettingsError(f"http_port {self.http_port}: gRPC has it (port): choose another, or 0 for a free one")
        VersionPolicy.parse(self.versions)
        self._check_security()

    def _check_security(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            missing = "tls_key" if self.tls_key is None else "tls_certificate"
            raise SettingsError(f"{missing} is not set: a certificate and its key go together")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise SettingsError("tls_client_ca is set without tls_certificate: clients show a certificate to a server that has one")
        if self.tls_certificate is None and not self.insecure and not is_loopback(self.host):
            what = "requests" if self.tokens_file is None else "requests and their tokens"
            raise SettingsError(
                f"host {self.host}: {what} would travel unencrypted beyond this machine: set tls_certificate and tls_key,"
                " or insecure where something in front encrypts"
            )
        if self.metrics_port is not None and not self.insecure and not is_loopback(self.metrics_host):
            raise SettingsError(
                f"metrics_host {self.metrics_host}: metrics would travel unencrypted beyond this machine:"
                " set insecure where something in front encrypts, or nobody listens"
            )


SETTINGS = declared(ServerSettings)
"""Every setting, in the order above."""
