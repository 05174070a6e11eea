"""Server settings: names, types, ranges and defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ModelWrapValidatorHandler, Strict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from tlcli.contract.errors import SettingsError
from tlcli.contract.images.decoding import ImageLimits
from tlcli.service.repository.version_policy import VersionPolicy
from tlcli.service.system.addresses import is_loopback
from tlcli.service.telemetry.logs import LogFormat

_MAX_S = 1_000_000
"""Maximum duration in seconds, about eleven days. gRPC stores milliseconds in 31 bits, and timers do not support infinity."""

_MAX_MESSAGE_BYTES = 1024**3
"""Maximum size of a message. gRPC stores the size in 31 bits."""

_MAX_MEMORY_BYTES = 1024**5


def _not_empty(value: object) -> object:
    if value == "":
        raise ValueError("empty")
    return value


_PORT: Any = Field(ge=0, le=65535, json_schema_extra={"expected": "1 to 65535, or 0 for a free port"})
_Port = Annotated[int, _PORT]
_OptionalPort = Annotated[int | None, _PORT]
_Path = Annotated[Path, Strict(False), BeforeValidator(_not_empty)]
_OptionalPath = Annotated[Path | None, Strict(False), BeforeValidator(_not_empty)]
_Count = Annotated[int, Field(ge=1, le=1_000_000)]
_Threads = Annotated[int, Field(ge=0, le=1024)]
_Connections = Annotated[int, Field(ge=1, le=65536)]


class ServerSettings(BaseModel):
    """Immutable settings that describe a server from start to shutdown.

    `tlcli.service.settings.sources` reads each field from the settings file, an environment variable or a flag of `tlcli serve`.
    The field descriptions appear in the help of `tlcli serve` and in the table of `docs/serving.md`.

    Raises:
        SettingsError: a value is outside its range or contradicts another.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    models: _Path = Field(default=Path("models"), description="Model repository: `<models>/<name>/<version>/model.onnx`.")
    host: str = Field(
        default="127.0.0.1", min_length=1, description="Address to listen on. The default accepts connections from this machine only."
    )
    port: _Port = Field(default=8001, description="Port for gRPC. 0 picks a free port and logs it.")
    http_port: _OptionalPort = Field(default=None, description="Port for HTTP. Not set: gRPC only. 0 picks a free port and logs it.")
    allowed_hosts: str | None = Field(
        default=None,
        min_length=1,
        description="Host names accepted in HTTP requests, separated by commas, such as models.example; * accepts any. IP addresses and"
        " localhost are always accepted. Not set: only those on a loopback address, and any name on other addresses.",
    )
    reuse_port: bool = Field(
        default=False,
        description="Share the port with another server that has this setting too, so that a new server listens before the old one stops.",
    )
    insecure: bool = Field(
        default=False, description="Listen beyond this machine without TLS, for servers behind a proxy that encrypts the traffic."
    )
    tls_certificate: _OptionalPath = Field(
        default=None, description="Certificate of the server with its intermediate certificates, PEM. Reloaded when the file changes."
    )
    tls_key: _OptionalPath = Field(default=None, description="Private key of the certificate, PEM, without a password.")
    tls_client_ca: _OptionalPath = Field(
        default=None, description="Certificates of authorities, PEM. Clients must present a certificate signed by one of them."
    )
    tokens_file: _OptionalPath = Field(
        default=None, description="File of access tokens, one per line. Each request must carry one. Reloaded when the file changes."
    )
    versions: str = Field(
        default="all",
        min_length=1,
        description="Versions of each model to serve: all, latest, latest:N, or numbers such as 1,3. Labelled versions are always served.",
    )
    model_control: Literal["fixed", "explicit", "poll"] = Field(
        default="fixed",
        description="Changes to the served models. fixed: none; explicit: clients load and unload models; poll: the server follows the"
        " model repository.",
    )
    poll_s: float = Field(
        default=5.0, ge=0.01, le=_MAX_S, description="Interval in seconds between checks of the model repository with model_control poll."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Device that runs the models. auto: the GPU if ONNX Runtime can use it, else the CPU."
    )
    tf32: bool = Field(
        default=False,
        description="Multiply float32 numbers in TF32 on a GPU, as PyTorch's convolutions do. Two to four times as fast, but maps differ"
        " from those of a CPU.",
    )
    threads: _Threads = Field(
        default=0,
        description="ONNX Runtime threads per model. 0: one per core this process may use, or one for a model that runs in about a"
        " millisecond.",
    )
    image_threads: _Threads = Field(
        default=0, description="Threads that decode, resize and draw images. 0: one per core this process may use."
    )
    limits_max_bytes: int = Field(
        default=ImageLimits.max_bytes,
        ge=1,
        le=_MAX_MESSAGE_BYTES,
        description="Maximum size of an encoded image in bytes; a request may be at least as large.",
    )
    limits_max_pixels: int = Field(
        default=ImageLimits.max_pixels, ge=1, description="Largest image in pixels, width times height, checked before decoding."
    )
    max_image_s: float = Field(
        default=300.0,
        ge=0,
        le=_MAX_S,
        description="Time limit for one image in seconds, from entering the queue to the response; an image that exceeds it is"
        " rejected. 0: no limit.",
    )
    max_decode_s: float = Field(
        default=2.0,
        ge=0.01,
        le=_MAX_S,
        description="CPU time limit for decoding one image, in seconds; an image that exceeds it is rejected. Files whose decoding time"
        " cannot be bounded from their structure are decoded in a separate process.",
    )
    max_memory_bytes: int = Field(
        default=0,
        ge=0,
        le=_MAX_MEMORY_BYTES,
        description="Memory budget of all requests in bytes: bodies, decoded images, drawings, and runs at a size other than the model's"
        " own. A request waits up to 2 s for memory, then is rejected. 0: half of the container's limit, or half of the"
        " machine's memory if there is no limit.",
    )
    max_message_bytes: int = Field(
        default=0,
        ge=0,
        le=_MAX_MESSAGE_BYTES,
        description="Largest request in bytes, for requests with several images; each image also has its own limits. 0: large"
        " enough for the largest image.",
    )
    max_batch_size: _Count = Field(default=8, description="Largest number of images in one run of a model.")
    max_queue_delay_ms: float = Field(
        default=0.0,
        ge=0,
        le=1_000_000,
        description="Milliseconds that an idle model waits for more images before it runs a batch. Images that arrive during a run share"
        " the next batch in any case. 0: no wait.",
    )
    max_queue_size: _Count = Field(
        default=64, description="Largest number of images waiting for one model. More are rejected with a retry delay."
    )
    max_score_cams: _Count = Field(
        default=16,
        description="Largest number of Score-CAMs of one model, waiting or in progress. More are rejected. The oldest runs first, in steps"
        " between images.",
    )
    max_maps: _Count = Field(
        default=100,
        description="Largest number of classes that one request may explain. Each class needs its own map, and a PNG if the map is drawn.",
    )
    stream_in_flight: _Count = Field(default=8, description="Images of one stream that are processed at the same time.")
    stream_idle_s: float = Field(
        default=300.0,
        ge=0,
        le=_MAX_S,
        description="Seconds without a message, sent or received, after which a stream is closed. Images in progress keep it open."
        " 0: no limit.",
    )
    max_connection_age_s: float = Field(
        default=0.0,
        ge=0,
        le=_MAX_S,
        description="Age in seconds at which a gRPC client is asked to reconnect, so that it finds servers added since. A client with a"
        " retry policy loses no request. 0: no limit.",
    )
    max_connections: _Connections = Field(
        default=1024,
        description="Largest number of open connections per protocol, or fewer if the system allows fewer open files. More are rejected.",
    )
    max_streams: _Connections = Field(
        default=256, description="Largest number of concurrent calls per gRPC connection. Clients delay further calls."
    )
    pre_stop_s: float = Field(
        default=0.0,
        ge=0,
        le=_MAX_S,
        description="Seconds to keep accepting requests after health turns NOT_SERVING, so that load balancers have time to stop sending"
        " them. Use 0 without a load balancer.",
    )
    grace_s: float = Field(
        default=30.0, ge=0, le=_MAX_S, description="Seconds that in-flight requests may take at shutdown before they are cancelled."
    )
    metrics_port: _OptionalPort = Field(
        default=None, description="Port for Prometheus metrics over HTTP. Not set: no metrics. 0 picks a free port and logs it."
    )
    metrics_host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on for metrics, which travel unencrypted.")
    otel_endpoint: str | None = Field(
        default=None,
        min_length=1,
        description="OpenTelemetry collector for traces, http://HOST:PORT. Not set: the value of OTEL_EXPORTER_OTLP_ENDPOINT.",
    )
    log_format: LogFormat = Field(default="text", description="Log format: lines of text, or one JSON object per line.")
    log_requests: bool = Field(default=False, description="Log one line per request.")

    @property
    def limits(self) -> ImageLimits:
        """Limits that apply to each image of a request."""
        return ImageLimits(self.limits_max_bytes, self.limits_max_pixels)

    @model_validator(mode="wrap")
    @classmethod
    def _raise_settings_errors(cls, values: Any, handler: ModelWrapValidatorHandler[ServerSettings]) -> ServerSettings:
        try:
            settings = handler(values)
        except ValidationError as error:
            name, value = error.errors()[0]["loc"][0], error.errors()[0]["input"]
            field = cls.model_fields.get(str(name))
            raise SettingsError(f"{name} {value}: {'no such setting' if field is None else problem(field, error)}") from error
        settings._check_combinations()
        return settings

    def _check_combinations(self) -> None:
        if self.http_port == self.port != 0:
            raise SettingsError(f"http_port {self.http_port}: already used for gRPC (port): choose another, or 0 for a free port")
        VersionPolicy.parse(self.versions)
        if (self.tls_certificate is None) != (self.tls_key is None):
            missing = "tls_key" if self.tls_key is None else "tls_certificate"
            raise SettingsError(f"{missing} is not set: set both the certificate and its key")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise SettingsError("tls_client_ca is set without tls_certificate: client certificates need a server with TLS")
        if self.tls_certificate is None and not self.insecure and not is_loopback(self.host):
            what = "requests" if self.tokens_file is None else "requests and their tokens"
            raise SettingsError(
                f"host {self.host}: {what} would travel unencrypted beyond this machine: set tls_certificate and tls_key,"
                " or insecure behind a proxy that encrypts"
            )
        if self.metrics_port is not None and not self.insecure and not is_loopback(self.metrics_host):
            raise SettingsError(
                f"metrics_host {self.metrics_host}: metrics would travel unencrypted beyond this machine:"
                " set insecure behind a proxy that encrypts, or on a network that you trust"
            )


SETTINGS = ServerSettings.model_fields
"""Fields of all settings by name, in the order of `ServerSettings`."""

_KINDS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}

_RANGE_ERRORS = ("greater_than_equal", "less_than_equal", "finite_number", "int_parsing_size", "literal_error")
"""Pydantic's error types for values of the right type that are out of range or not among the choices."""


def kind_of(field: FieldInfo) -> type:
    """Return the type of a setting's values: bool, int, float, str or Path."""
    first = (*get_args(field.annotation), field.annotation)[0]
    return first if isinstance(first, type) else str  # a choice of a Literal, such as "auto", is a string


def choices_of(field: FieldInfo) -> tuple[str, ...]:
    """Return the values that a setting may have, or an empty tuple if any value of its type is allowed."""
    return tuple(option for option in get_args(field.annotation) if isinstance(option, str))


def problem(field: FieldInfo, error: ValidationError) -> str:
    """Describe the values that a setting accepts, for the message about a value that pydantic rejected."""
    is_range = error.errors()[0]["type"] in _RANGE_ERRORS
    return f"expected {(is_range and _range(field)) or _KINDS[kind_of(field)]}"


def _range(field: FieldInfo) -> str:
    if isinstance(field.json_schema_extra, dict):
        return str(field.json_schema_extra["expected"])
    if choices := choices_of(field):
        return f"{', '.join(choices[:-1])} or {choices[-1]}"
    low, high = bound(field, "ge"), bound(field, "le")
    return f"{low:,g} or more" if high is None else f"{low:g} to {high:,.0f}"


def bound(field: FieldInfo, name: Literal["ge", "le"]) -> float | None:
    """Return the minimum (`ge`) or maximum (`le`) of a setting, or None if it has none."""
    return next((getattr(constraint, name) for constraint in field.metadata if hasattr(constraint, name)), None)
