"""Synchronous Python client that sends images and returns scores and maps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Self, Unpack

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tlcli.contract.errors import OverloadedError, ServerError, TlcliError
from tlcli.service.client.classify_options import ClassifyOptions, build_query
from tlcli.service.client.connection import Connection, ConnectionOptions
from tlcli.service.client.request_stream import ImageInput, OutgoingStream, name_image, naming, with_image
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierStub
from tlcli.service.protocol import codec, error_status
from tlcli.service.types.answer import Classification, ModelInfo, ModelStatus, StreamAnswer
from tlcli.service.types.query import Query

_POLL_S = 0.05


class Client:
    """Synchronous client for one server. The connection opens on the first call. Thread-safe.

    Example:
        with Client(port=8001) as client:
            best = client.classify("image.jpg", cam="gradcam").predictions[0]
            print(best.label, best.score, best.map.values)
    """

    def __init__(self, host: str = "127.0.0.1", port: int | None = None, **connection: Unpack[ConnectionOptions]) -> None:
        """Create a client; the connection opens on the first call.

        Args:
            host: name or address of the server, also as `host:port`, `grpc://host:port`, or `grpcs://host:port` for TLS.
            port: port of the server, unless `host` contains it; 8001 by default.
            connection: `tls`, `tls_ca`, `tls_certificate`, `tls_key`, `token`, `retries` and `metadata`; see
                `tlcli.service.client.connection.Connection`.

        Raises:
            SettingsError: the address or an option is invalid; see `Connection`.
        """
        self._connection = Connection(host, port, **connection)
        self._metadata = self._connection.metadata
        self._channel = self._connection.channel()
        self._classifier = ClassifierStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._input_sizes: dict[tuple[str, str], tuple[int, int]] = {}

    @property
    def address(self) -> str:
        """Address of the server as `host:port`."""
        return self._connection.address

    def close(self) -> None:
        """Close the connection and cancel in-flight calls."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def classify(
        self, image: ImageInput, *, request_id: str = "", timeout_s: float | None = 30.0, **options: Unpack[ClassifyOptions]
    ) -> Classification:
        """Classify one image.

        Args:
            image: encoded image, path of an image file, Pillow image, or RGB array `[height, width, 3]` of uint8. An array of the
                model's input size (see `get_model`) is used as the input directly. Any other array is resized and cropped like other
                images.
            request_id: id to return with the response.
            timeout_s: time limit in seconds; None for no limit, for example for `scorecam`, which may take minutes.
            options: `model`, `version`, `top_k`, `cam`, `classes`, `map_format`, `softmax` and `max_channels`; see
                `tlcli.service.client.classify_options.ClassifyOptions`.

        Raises:
            ImageError: the image cannot be read or exceeds a limit.
            RequestError: a class, map method, number or shape does not match the model.
            NotFoundError: the file, model or version does not exist.
            ModelFileError: the model exists but is broken.
            ServerError: the server cannot be reached or does not respond in time.
            OverloadedError: the server is still overloaded after all retries.
        """
        request = codec.write_request(with_image(self._query(options, request_id), image, self._input_size_of(options)))
        backoff = self._connection.backoff(timeout_s)
        with naming(image):
            while True:
                try:
                    with self._translated():
                        return codec.read_response(self._classifier.Classify(request, timeout=backoff.left_s(), metadata=self._metadata))
                except OverloadedError as error:
                    pause_s = backoff.pause_s(error)
                time.sleep(pause_s)

    def classify_stream(
        self, images: Iterable[ImageInput], *, timeout_s: float | None = None, **options: Unpack[ClassifyOptions]
    ) -> Iterator[StreamAnswer]:
        """Classify many images in one streaming call, with several images in progress at a time.

        Args:
            images: images to classify, read in one of gRPC's threads as the server accepts them, not all at once.
            timeout_s: time limit for all images together, in seconds; None for no limit.
            options: see `classify`.

        Yields:
            One response per image, in order. If an image fails, its response contains the error.

        Raises:
            ServerError: the server cannot be reached or does not respond in time. This ends the stream.
            Exception: any exception raised by `images`.
        """
        outgoing = OutgoingStream(images, self._query(options), self._input_size_of(options))
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

    def _query(self, options: ClassifyOptions, request_id: str = "") -> Query:
        model, version = options.get("model", ""), options.get("version", "")
        return build_query(options, lambda: self.get_model(model, version).labels, request_id)

    def _input_size_of(self, options: ClassifyOptions) -> Callable[[], tuple[int, int]]:
        return partial(self._input_size, options.get("model", ""), options.get("version", ""))

    def list_models(self, timeout_s: float = 30.0) -> tuple[ModelStatus, ...]:
        """Return the status of every version of every model on the server. The status of a broken version includes the reason.

        Raises:
            ServerError: the server cannot be reached or does not respond in time.
        """
        with self._translated():
            answer = self._classifier.ListModels(pb.ListModelsRequest(), timeout=timeout_s, metadata=self._metadata)
        return tuple(codec.read_status(status) for status in answer.models)

    def get_model(self, model: str = "", version: str = "", timeout_s: float = 30.0) -> ModelInfo:
        """Return the properties of one model.

        Raises:
            NotFoundError: the model or version does not exist.
            ModelFileError: the model exists but is broken.
            ServerError: the server cannot be reached or does not respond in time.
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
        """Return True if the server, or the given model, reports SERVING. Return False if the server cannot be reached."""
        try:
            answer = self._health.Check(health_pb2.HealthCheckRequest(service=model), timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def wait_until_ready(self, timeout_s: float = 60.0, model: str = "") -> None:
        """Wait until the server, or the given model, reports SERVING.

        Raises:
            ServerError: the server or model was not ready within `timeout_s` seconds.
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
