"""The Python client: an image in, scores and maps out."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Self, Unpack

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tlcli.contract.errors import OverloadedError, ServerError, TlcliError
from tlcli.service.client.connection import Connection, How
from tlcli.service.client.request_stream import ImageInput, OutgoingStream, name_image, with_image
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierStub
from tlcli.service.protocol import codec, error_status
from tlcli.service.types.answer import Classification, ModelInfo, ModelStatus, StreamAnswer
from tlcli.service.types.query import MapFormat, Query, map_query

_POLL_S = 0.05


class Client:
    """A connection to one server, made at the first call. Safe to use from several threads.

    Example:
        with Client(port=8001) as client:
            best = client.classify("image.jpg", method="gradcam").predictions[0]
            print(best.label, best.score, best.map.values)
    """

    def __init__(self, host: str = "127.0.0.1", port: int | None = None, **how: Unpack[How]) -> None:
        """Connects at the first call.

        Args:
            host: where the server listens: a name or an address, also as `host:port`, `grpc://host:port`, or `grpcs://host:port` for TLS.
            port: used where `host` names none.
            how: `tls`, `tls_ca`, `tls_certificate`, `tls_key`, `token`, `retries` and `metadata`; see `connection.Connection`.

        Raises:
            SettingsError: see there.
        """
        self._connection = Connection(host, port, **how)
        self._metadata = self._connection.metadata
        self._channel = self._connection.channel()
        self._classifier = ClassifierStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._input_sizes: dict[tuple[str, str], tuple[int, int]] = {}

    @property
    def address(self) -> str:
        """`host:port` of the server."""
        return self._connection.address

    def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def classify(
        self,
        image: ImageInput,
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
        """Ask about one image.

        Args:
            image: an encoded image, its path, a Pillow image, or an array, uint8 `[height, width, 3]`, RGB. An array of the
                model's own input size (see `get_model`) is the input itself; of any other size it is resized and cropped as images are.
            model: its name; may be empty where the server holds one only.
            version: empty for the latest.
            top_k: how many of the best classes; 0 for five, or fewer where the model has fewer.
            method: the map to compute, for example `gradcam`; None for none.
            classes: to explain, by id; -r means the r-th ranked. Empty: the first ranked.
            map_format: `raw` numbers, a `heat_map` of the input's size, or an `overlay` on the image.
            softmax: explain the class's softmax probability instead of its logit.
            max_channels: how many channels `scorecam` and `faster_scorecam` look through; 0 for all, and for ten.
            request_id: comes back in the answer.
            timeout_s: how long to wait; None as long as it takes, which with `scorecam` may be minutes.

        Raises:
            ImageError: not an image that can be read, or one over a limit.
            RequestError: a class, a method, a number or a shape that does not fit the model.
            NotFoundError: no such file, model or version.
            ModelFileError: the model is there and broken.
            ServerError: no server answers, or not in time.
            OverloadedError: it is too busy, and was when it was asked again.
        """
        wanted = map_query(method, classes, map_format, softmax, max_channels)
        asked = with_image(
            Query(model=model, version=version, top_k=top_k, map=wanted, request_id=request_id),
            image,
            partial(self._input_size, model, version),
        )
        request = codec.write_request(asked)
        try:
            return codec.read_response(self._patiently(request, timeout_s))
        except TlcliError as error:
            named = name_image(error, image)
            if named is error:
                raise
            raise named from error

    def _patiently(self, request: pb.ClassifyRequest, timeout_s: float | None) -> pb.ClassifyResponse:
        end = math.inf if timeout_s is None else time.monotonic() + timeout_s
        for attempt in itertools.count(1):
            left_s = end - time.monotonic()
            try:
                with self._translated():
                    return self._classifier.Classify(request, timeout=None if timeout_s is None else left_s, metadata=self._metadata)
            except OverloadedError as error:
                pause_s = self._connection.pause_s(error, attempt, left_s)
                if pause_s is None:
                    raise
                time.sleep(pause_s)
        raise AssertionError("unreachable")

    def classify_stream(
        self,
        images: Iterable[ImageInput],
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
        """Ask about many images on one call, several of them at a time.

        Args:
            images: read in a thread of gRPC's as the server takes them, not all at once.
            timeout_s: for all of them; None waits as long as it takes.
            model, version, top_k, method, classes, map_format, softmax, max_channels: see `classify`.

        Yields:
            An answer for each image, in their order. An image that fails is answered with its error.

        Raises:
            ServerError: no server answers, or not in time; the stream is over then.
            Exception: what `images` itself raises.
        """
        wanted = map_query(method, classes, map_format, softmax, max_channels)
        outgoing = OutgoingStream(
            images, Query(model=model, version=version, top_k=top_k, map=wanted), partial(self._input_size, model, version)
        )
        call = self._classifier.ClassifyStream(iter(outgoing), timeout=timeout_s, metadata=self._metadata)
        try:
            with self._translated():
                for message in call:
                    yield from _unsent(outgoing)
                    yield _read_answer(message, outgoing.answered().image)
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
        return tuple(codec.read_status(status) for status in answer.models)

    def get_model(self, model: str = "", version: str = "", timeout_s: float = 30.0) -> ModelInfo:
        """All that is known of one model.

        Raises:
            NotFoundError: no such model or version.
            ModelFileError: it is there and broken.
            ServerError: no server answers, or not in time.
        """
        request = pb.GetModelRequest(model=model, version=version)
        with self._translated():
            return codec.read_info(self._classifier.GetModel(request, timeout=timeout_s, metadata=self._metadata))

    def _input_size(self, model: str, version: str) -> tuple[int, int]:
        size = self._input_sizes.get((model, version))
        if size is None:
            info = self.get_model(model, version)
            size = self._input_sizes[model, version] = (info.input_height, info.input_width)
        return size

    def is_ready(self, model: str = "", timeout_s: float = 5.0) -> bool:
        """Does the server, or this model of it, say SERVING? A server that cannot be reached is not ready."""
        try:
            answer = self._health.Check(health_pb2.HealthCheckRequest(service=model), timeout=timeout_s, metadata=self._metadata)
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
                raise ServerError(self._connection.why_not_ready(timeout_s, model))
            time.sleep(_POLL_S)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise self._connection.error(error) from error


def _unsent(outgoing: OutgoingStream) -> Iterator[StreamAnswer]:
    for request_id, error in outgoing.unsent():
        yield StreamAnswer(request_id, error)


def _read_answer(message: pb.ClassifyStreamResponse, image: ImageInput) -> StreamAnswer:
    if message.WhichOneof("result") == "response":
        return StreamAnswer(message.request_id, codec.read_response(message.response))
    return StreamAnswer(message.request_id, name_image(error_status.from_status(message.error), image))
