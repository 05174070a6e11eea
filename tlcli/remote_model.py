"""Python client for a running server. It returns answers of the same type as a loaded model and does not need PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self, Unpack, overload

import numpy as np
from PIL import Image

from tlcli.answer import Answer, Answers, framed
from tlcli.contract.errors import ImageError, NotFoundError, TlcliError
from tlcli.contract.files.display_name import printable
from tlcli.contract.images import decoding
from tlcli.contract.images.find_images import Skipped, describe
from tlcli.contract.images.preprocessing import Box
from tlcli.contract.maps.method_names import require_methods
from tlcli.contract.maps.scorecam import check_max_channels, is_score_cam
from tlcli.contract.model.class_choice import FIRST_RANKED, class_targets
from tlcli.exported_model import Cam, Classes, OnError, cam_names, check_map_arguments, class_names, require_on_error
from tlcli.image_source import ImageInput, ImageSource, image_sources
from tlcli.predictor import Floats, MapOptions
from tlcli.service import Classification, ModelStatus
from tlcli.service import Client as ServiceClient
from tlcli.service.client.connection import ConnectionOptions

_BATCH = 64
"""Number of images whose encoded bytes are held in memory and in flight to the server at the same time."""
_ALL_CLASSES = 2**31 - 1
"""`top_k` larger than the class count of any model, so that the server returns all classes."""


class Client:
    """Client for one server. The connection opens on the first call. Instances are thread-safe.

    For the server's own messages, timings and asynchronous calls, see `tlcli.service.Client` and `tlcli.service.AsyncClient`.

    Example:
        with tlcli.Client("localhost:8001") as client:
            answer = client.predict("cat.jpg", cam="gradcam")
            answer.label, answer.score, answer.overlay
    """

    def __init__(self, address: str = "127.0.0.1:8001", **connection: Unpack[ConnectionOptions]) -> None:
        """Create a client; the connection opens on the first call.

        Args:
            address: `host:port` of the server's gRPC port; `grpcs://host:port` for TLS.
            connection: connection options `tls`, `tls_ca`, `tls_certificate`, `tls_key`, `token`, `retries` and `metadata`; see
                `tlcli.service.client.connection.Connection`.

        Raises:
            SettingsError: the address or an option is invalid.
        """
        self._client = ServiceClient(address, **connection)

    @property
    def address(self) -> str:
        """`host:port` of the server."""
        return self._client.address

    def close(self) -> None:
        """Close the connection and cancel in-flight calls."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def models(self) -> tuple[ModelStatus, ...]:
        """Return the status of every version of every model on the server.

        Raises:
            ServerError: the server cannot be reached or does not answer in time.
        """
        return self._client.list_models()

    def wait_until_ready(self, timeout_s: float = 60.0, model: str = "") -> None:
        """Block until the server, or one of its models, reports SERVING.

        Args:
            timeout_s: time limit in seconds.
            model: name of the model; empty for the server as a whole.

        Raises:
            ServerError: the server or model did not report SERVING within `timeout_s`.
        """
        self._client.wait_until_ready(timeout_s, model)

    @overload
    def predict(  # type: ignore[overload-overlap]  # a string is also an iterable
        self,
        images: ImageInput,
        *,
        cam: Cam = None,
        classes: Classes = (),
        softmax: bool = False,
        max_channels: int | None = None,
        model: str = "",
        version: str = "",
        on_error: OnError = "raise",
        timeout_s: float | None = 30.0,
    ) -> Answer: ...

    @overload
    def predict(
        self,
        images: Iterable[ImageInput],
        *,
        cam: Cam = None,
        classes: Classes = (),
        softmax: bool = False,
        max_channels: int | None = None,
        model: str = "",
        version: str = "",
        on_error: OnError = "raise",
        timeout_s: float | None = 30.0,
    ) -> Answers: ...

    def predict(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        cam: Cam = None,
        classes: Classes = (),
        softmax: bool = False,
        max_channels: int | None = None,
        model: str = "",
        version: str = "",
        on_error: OnError = "raise",
        timeout_s: float | None = 30.0,
    ) -> Answer | Answers:
        """Classify images on the server and explain classes with maps.

        Args:
            images: see `tlcli.Model.predict`; paths and URLs are read on this machine, not on the server.
            cam, classes, softmax, max_channels: see `tlcli.Model.predict`.
            model: name of the model; may be empty if the server has only one.
            version: version of the model; empty for the latest.
            on_error: see `tlcli.Model.predict`.
            timeout_s: time limit per image in seconds; None for no limit, which Score-CAM may need.

        Returns:
            An answer if `images` is a single image; a list of answers for an iterable or a folder.

        Raises:
            NotFoundError: a file, folder, page, model or version does not exist.
            ImageError: an image cannot be read or exceeds a limit.
            RequestError: a class, map or number does not fit the model.
            ModelFileError: the model exists but is broken.
            ServerError: the server cannot be reached or does not answer in time.
            OverloadedError: the server is still too busy after the retries.
        """
        skipped: list[Skipped] = []
        sources, is_single = image_sources(images, skipped)
        for line in describe(skipped):
            warnings.warn(line, stacklevel=2)
        request = _Request(self._client, model, version, timeout_s)
        outcomes = request.answers(sources, request.options(cam, classes, softmax, max_channels))
        answers = Answers(_without_errors(outcomes, "raise" if is_single else require_on_error(on_error)))
        return answers[0] if is_single else answers

    def __repr__(self) -> str:
        return f"Client({self.address!r})"


class _Request:
    """Request that corresponds to one call of `predict`."""

    def __init__(self, client: ServiceClient, model: str, version: str, timeout_s: float | None) -> None:
        self._client = client
        self._model = model
        self._version = version
        self._timeout_s = timeout_s

    def options(self, cam: Cam, classes: Classes, softmax: bool, max_channels: int | None) -> MapOptions:
        """Return the options of the maps to request.

        The model's labels and map names are fetched from the server only if `classes` contains a label or `cam` is `all`.
        """
        methods, chosen = cam_names(cam), class_names(classes)
        check_map_arguments(methods, chosen, softmax, max_channels)
        if "all" not in methods:
            check_max_channels(max_channels, methods)
        targets = tuple(target for target in chosen if isinstance(target, int))
        if "all" in methods or any(isinstance(target, str) for target in chosen):
            info = self._client.get_model(self._model, self._version)
            methods = require_methods(methods, [output.method for output in info.methods], f"model {info.model!r}")
            targets = class_targets(chosen, info.labels, "classes") if chosen else ()
        return MapOptions(methods, targets, softmax, max_channels)

    def answers(self, sources: Sequence[ImageSource], options: MapOptions) -> Iterator[Answer | TlcliError]:
        """Yield an answer for each source, or an error if its image cannot be read or classified."""
        for start in range(0, len(sources), _BATCH):
            batch = sources[start : start + _BATCH]
            encoded = [_encoded(source) for source in batch]
            sent = [data for data in encoded if isinstance(data, bytes)]
            streams = [self._classify(sent, options, method) for method in options.methods or (None,)]
            for source, data in zip(batch, encoded, strict=True):
                yield _answer(source, data, [next(stream) for stream in streams], options) if isinstance(data, bytes) else data

    def _classify(self, images: list[bytes], options: MapOptions, method: str | None) -> Iterator[Classification | TlcliError]:
        ask = {
            "model": self._model,
            "version": self._version,
            "top_k": _ALL_CLASSES,
            "cam": method,
            "classes": () if method is None else options.targets,
            "softmax": options.softmax,
            "max_channels": (options.max_channels or 0) if method is not None and is_score_cam(method) else 0,
        }
        if len(images) == 1:  # a unary call is retried when the server is busy
            yield self._classify_one(images[0], ask)
        elif images:
            timeout_s = None if self._timeout_s is None else self._timeout_s * len(images)
            for answer in self._client.classify_stream(images, timeout_s=timeout_s, **ask):  # type: ignore[arg-type]
                yield answer.outcome

    def _classify_one(self, image: bytes, ask: dict[str, object]) -> Classification | TlcliError:
        try:
            return self._client.classify(image, timeout_s=self._timeout_s, **ask)  # type: ignore[arg-type]
        except ImageError as error:
            return error


def _encoded(source: ImageSource) -> bytes | ImageError | NotFoundError:
    try:
        return source.encoded()
    except (ImageError, NotFoundError) as error:
        return error


def _answer(
    source: ImageSource, encoded: bytes, outcomes: Sequence[Classification | TlcliError], options: MapOptions
) -> Answer | TlcliError:
    """Merge the outcomes of one image, one per map method, into an answer. Return the first error if there is one."""
    classified: list[Classification] = []
    for outcome in outcomes:
        if isinstance(outcome, TlcliError):
            name = printable(source.name)
            return ImageError(f"{name}: {outcome}") if isinstance(outcome, ImageError) and name else outcome
        classified.append(outcome)
    by_id = sorted(classified[0].predictions, key=lambda prediction: prediction.class_id)
    by_rank = {prediction.rank: prediction.class_id for prediction in by_id}
    targets = options.targets or (FIRST_RANKED,)
    explained = [target if target >= 0 else by_rank[-target] for target in targets] if options.methods else []
    assigned = sorted((prediction for prediction in by_id if prediction.assigned), key=lambda prediction: prediction.rank)
    labels = [prediction.class_id for prediction in assigned]
    if classified[0].task == "multi-label" and options.methods and not options.targets:
        explained = labels
    maps, box = _maps(classified, options.methods, explained)

    def frame() -> tuple[Image.Image, Box]:
        image = decoding.decode(encoded)
        return framed(image, box or (0.0, 0.0, float(image.width), float(image.height)))

    return Answer(
        source=source.name,
        labels=[prediction.label for prediction in by_id],
        scores=np.array([prediction.score for prediction in by_id], np.float32),
        logits=np.array([prediction.logit for prediction in by_id], np.float32),
        explained=explained,
        maps=maps,
        framed=frame,
        assigned=labels,
    )


def _maps(classified: Sequence[Classification], methods: Sequence[str], explained: Sequence[int]) -> tuple[dict[str, Floats], Box | None]:
    maps: dict[str, Floats] = {}
    box = None
    for method, classification in zip(methods, classified, strict=False):
        by_id = {prediction.class_id: prediction.map for prediction in classification.predictions if prediction.map is not None}
        values = [by_id[class_id].values for class_id in explained]
        maps[method] = np.stack([value for value in values if value is not None]) if values else np.zeros((0, 0, 0), np.float32)
        box = by_id[explained[0]].box if explained else None
    return maps, box


def _without_errors(outcomes: Iterable[Answer | TlcliError], on_error: OnError) -> Iterator[Answer]:
    for outcome in outcomes:
        if isinstance(outcome, Answer):
            yield outcome
        elif on_error == "raise" or not isinstance(outcome, ImageError | NotFoundError):
            raise outcome
        else:
            warnings.warn(f"left out: {printable(str(outcome))}", stacklevel=3)
