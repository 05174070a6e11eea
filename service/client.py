"""The Python client: a picture in, scores and maps out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from contract.errors import RequestError, ServerError, SettingsError, TlcliError
from service import errors, wire
from service.answers import Classification, ModelInfo, ModelStatus, StreamAnswer
from service.client_tls import ClientTls, why_unreachable
from service.outgoing import OutgoingStream, Picture, name_picture, with_picture
from service.pb.tlcli.v1 import classifier_pb2 as pb
from service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierStub
from service.query import MapFormat, MapQuery, Query, require_map_format
from service.settings import is_loopback, join_address
from service.tokens import require_token

_POLL_S = 0.05


class Client:
    """A connection to one server, made at the first call. Safe to use from several threads.

    Example:
        with Client(port=8001) as client:
            best = client.classify("picture.jpg", method="gradcam").predictions[0]
            print(best.label, best.score, best.map.values)
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8001,
        *,
        tls: bool = False,
        tls_ca: str | Path | None = None,
        tls_certificate: str | Path | None = None,
        tls_key: str | Path | None = None,
        token: str | None = None,
    ) -> None:
        """Connects at the first call.

        Args:
            host, port: where the server listens.
            tls: encrypt, and trust the authorities that gRPC brings along; any of the three that follow does so too.
            tls_ca: a PEM file: trust these authorities instead.
            tls_certificate, tls_key: PEM files: what this client shows of itself.
            token: sent with each call.

        Raises:
            SettingsError: a file that cannot be used, a certificate without its key, a text that is no token, or a token that would
                travel unencrypted beyond this machine.
        """
        self.address = join_address(host, port)
        files = [None if path is None else Path(path) for path in (tls_ca, tls_certificate, tls_key)]
        secured = ClientTls(*files) if tls or any(files) else None
        if token is not None:
            require_token(token)
            if secured is None and not is_loopback(host):
                raise SettingsError(f"a token for {self.address} would travel unencrypted: use TLS, with tls_ca (--tls-ca) or tls (--tls)")
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        self._why_unreachable = partial(why_unreachable, host, port, secured)
        options: list[tuple[str, int]] = [
            ("grpc.max_receive_message_length", -1),  # overlays of many classes pass gRPC's 4 MB
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),  # a server that starts is found within a second
        ]
        if is_loopback(host):
            options.append(("grpc.enable_http_proxy", 0))  # no proxy knows the way to this machine's own ports
        if secured is None:
            self._channel = grpc.insecure_channel(self.address, options=options)
        else:
            self._channel = grpc.secure_channel(self.address, secured.credentials, options=options)
        self._classifier = ClassifierStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def classify(
        self,
        picture: Picture,
        *,
        model: str = "",
        version: str = "",
        top_k: int = 0,
        method: str | None = None,
        classes: Sequence[int] = (),
        map_format: MapFormat = "raw",
        softmax: bool = False,
        max_channels: int = 0,
        request_id: str = "",
        timeout_s: float | None = 30.0,
    ) -> Classification:
        """Ask about one picture.

        Args:
            picture: an encoded picture, its path, a Pillow image, or an input of the model's own size as an
                array, uint8 `[height, width, 3]`, RGB (see `get_model`).
            model: its name; may be empty where the server holds one only.
            version: empty for the latest.
            top_k: how many of the best classes; 0 for five, or fewer where the model has fewer.
            method: the map to compute, for example `gradcam`; None for none.
            classes: to explain, by id; -r means the r-th ranked. Empty: the first ranked.
            map_format: `raw` numbers, a `heat_map` of the input's size, or an `overlay` on the picture.
            softmax: explain the class's softmax probability instead of its logit.
            max_channels: how many channels `scorecam` and `faster_scorecam` look through; 0 for all, and for ten.
            request_id: comes back in the answer.
            timeout_s: how long to wait; None as long as it takes, which with `scorecam` may be minutes.

        Raises:
            PictureError: not a picture that can be read, or one over a limit.
            RequestError: a class, a method, a number or a shape that does not fit the model.
            NotFoundError: no such file, model or version.
            ModelFileError: the model is there and broken.
            ServerError: no server answers, or not in time.
        """
        wanted = _map_query(method, classes, map_format, softmax, max_channels)
        asked = with_picture(Query(model=model, version=version, top_k=top_k, map=wanted), picture)
        request = wire.write_request(asked)
        request.request_id = request_id
        try:
            with self._translated():
                return wire.read_response(self._classifier.Classify(request, timeout=timeout_s, metadata=self._metadata))
        except TlcliError as error:
            named = name_picture(error, picture)
            if named is error:
                raise
            raise named from error

    def classify_stream(
        self,
        pictures: Iterable[Picture],
        *,
        model: str = "",
        version: str = "",
        top_k: int = 0,
        method: str | None = None,
        classes: Sequence[int] = (),
        map_format: MapFormat = "raw",
        softmax: bool = False,
        max_channels: int = 0,
        timeout_s: float | None = None,
    ) -> Iterator[StreamAnswer]:
        """Ask about many pictures on one call, several of them at a time.

        Args:
            pictures: read in a thread of gRPC's as the server takes them, not all at once.
            timeout_s: for all of them; None waits as long as it takes.
            model, version, top_k, method, classes, map_format, softmax, max_channels: see `classify`.

        Yields:
            An answer for each picture, in their order. A picture that fails is answered with its error.

        Raises:
            ServerError: no server answers, or not in time; the stream is over then.
            Exception: what `pictures` itself raises.
        """
        wanted = _map_query(method, classes, map_format, softmax, max_channels)
        outgoing = OutgoingStream(pictures, Query(model=model, version=version, top_k=top_k, map=wanted))
        call = self._classifier.ClassifyStream(iter(outgoing), timeout=timeout_s, metadata=self._metadata)
        try:
            with self._translated():
                for message in call:
                    yield from _unsent(outgoing)
                    yield _read_answer(message, outgoing.answered().picture)
            yield from _unsent(outgoing)
        except TlcliError:
            if outgoing.failure is not None:
                raise outgoing.failure from None
            raise
        finally:
            call.cancel()  # type: ignore[no-untyped-call]  # the stubs leave it out

    def list_models(self, timeout_s: float = 30.0) -> tuple[ModelStatus, ...]:
        """Every version of every model on the server, the broken ones with the reason.

        Raises:
            ServerError: no server answers, or not in time.
        """
        with self._translated():
            answer = self._classifier.ListModels(pb.ListModelsRequest(), timeout=timeout_s, metadata=self._metadata)
        return tuple(wire.read_status(status) for status in answer.models)

    def get_model(self, model: str = "", version: str = "", timeout_s: float = 30.0) -> ModelInfo:
        """All that is known of one model.

        Raises:
            NotFoundError: no such model or version.
            ModelFileError: it is there and broken.
            ServerError: no server answers, or not in time.
        """
        request = pb.GetModelRequest(model=model, version=version)
        with self._translated():
            return wire.read_info(self._classifier.GetModel(request, timeout=timeout_s, metadata=self._metadata))

    def is_ready(self, model: str = "", timeout_s: float = 5.0) -> bool:
        """Does the server, or this model of it, say SERVING? A server that cannot be reached is not ready."""
        try:
            answer = self._health.Check(health_pb2.HealthCheckRequest(service=model), timeout=timeout_s)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def wait_until_ready(self, timeout_s: float = 60.0, model: str = "") -> None:
        """Return when the server, or this model of it, says SERVING.

        Raises:
            ServerError: it did not within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while not self.is_ready(model, timeout_s=max(_POLL_S, deadline - time.monotonic())):
            if time.monotonic() >= deadline:
                if reason := self._why_unreachable():
                    raise ServerError(f"{self.address}: {reason}")
                what = f"model {model!r}" if model else "no server"
                raise ServerError(f"{what} was ready at {self.address} within {timeout_s:g} s: see the server's log")
            time.sleep(_POLL_S)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise errors.from_rpc_error(error, self.address, self._why_unreachable) from error


def _map_query(method: str | None, classes: Sequence[int], map_format: MapFormat, softmax: bool, max_channels: int) -> MapQuery | None:
    if method is not None:
        return MapQuery(method, tuple(classes), require_map_format(map_format), softmax, max_channels)
    if classes:
        raise RequestError(f"classes {list(classes)} are to be explained by no method: name one, for example method='gradcam'")
    if softmax or max_channels:
        raise RequestError(
            "softmax and max_channels say how a map is made, and no method is named: name one, for example method='scorecam'"
        )
    return None


def _unsent(outgoing: OutgoingStream) -> Iterator[StreamAnswer]:
    for request_id, error in outgoing.unsent():
        yield StreamAnswer(request_id, error)


def _read_answer(message: pb.ClassifyStreamResponse, picture: Picture) -> StreamAnswer:
    if message.WhichOneof("result") == "response":
        return StreamAnswer(message.request_id, wire.read_response(message.response))
    return StreamAnswer(message.request_id, name_picture(errors.from_status(message.error), picture))
