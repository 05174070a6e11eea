"""Pictures, as a caller has them, into queries."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from tlcli.contract.errors import PictureError, RequestError, TlcliError
from tlcli.contract.images import decoding, heatmap
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.protocol import codec
from tlcli.service.types.query import Query

_MAX_BYTES = 512 * 1024 * 1024
"""Bound on a file; a server has its own (`limits_max_bytes`)."""

Picture = bytes | str | Path | Image.Image | npt.NDArray[np.uint8]
"""An encoded picture, its path, a Pillow image, or a uint8 array `[height, width, 3]`, RGB. An array of the model's own input size is the
input itself; an array of any other size is resized and cropped as every image is."""

InputSize = Callable[[], tuple[int, int]]
"""Ask for the height and width of the model's input."""


def with_picture(query: Query, picture: Picture, input_size: InputSize | None = None) -> Query:
    """The query, with its picture.

    A Pillow image is sent as PNG, turned upright by its EXIF data, which loses nothing that the server would keep. So is an array that is
    not of the model's input size.

    Args:
        query: what to ask.
        picture: to ask about.
        input_size: called for an array alone; None: an array is always the input itself.

    Raises:
        NotFoundError: no file at the path.
        PictureError: a file that may not be read, a Pillow image that cannot be read, or of a mode without colours.
        RequestError: an array of another type or shape, or no picture at all.
    """
    if isinstance(picture, bytes):
        return replace(query, encoded=picture)
    if isinstance(picture, str | Path):
        return replace(query, encoded=decoding.read_encoded(picture, _MAX_BYTES))
    if isinstance(picture, Image.Image):
        try:
            return replace(query, encoded=heatmap.encode(decoding.to_rgb(picture)))
        except OSError as error:  # Pillow reads a file it has opened only now
            raise PictureError(f"the Pillow image cannot be read: {error}") from error
    if isinstance(picture, np.ndarray) and is_pixels(picture):
        if input_size is None or picture.shape[:2] == input_size():
            return replace(query, pixels=picture.tobytes())
        return replace(query, encoded=heatmap.encode(Image.fromarray(np.ascontiguousarray(picture))))
    came = f"{picture.dtype} {list(picture.shape)}" if isinstance(picture, np.ndarray) else type(picture).__name__
    raise RequestError(f"a picture is bytes, a path, a Pillow image or a uint8 array [height, width, 3]; {came} came")


def is_pixels(picture: Picture) -> bool:
    """True for a uint8 array `[height, width, 3]` with at least one pixel."""
    return (
        isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3 and picture.size > 0
    )


def name_picture(error: TlcliError, picture: Picture) -> TlcliError:
    """The error, saying which file it is about, where the picture is one and the error about pictures."""
    if isinstance(picture, str | Path) and type(error) is PictureError:
        return PictureError(f"{picture}: {error}")
    return error


@dataclass(frozen=True)
class Sent:
    """One picture of a stream: asked about, or not sent for an error."""

    picture: Picture
    request_id: str
    error: TlcliError | None


class OutgoingStream:
    """The requests of a stream, drawn by gRPC in a thread of its own, and the order in which they went.

    A picture that cannot be sent keeps its place: `unsent` tells it to the reader of the answers.

    failure: what the caller's own iterable raised, if it did.
    """

    def __init__(self, pictures: Iterable[Picture], query: Query, input_size: InputSize | None = None) -> None:
        self._pictures = pictures
        self._query = query
        self._input_size = input_size
        self._sent: deque[Sent] = deque()
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[pb.ClassifyRequest]:
        try:
            for number, picture in enumerate(self._pictures):
                request_id = str(number)
                try:
                    request = codec.write_request(with_picture(replace(self._query, request_id=request_id), picture, self._input_size))
                except TlcliError as error:
                    self._sent.append(Sent(picture, request_id, error))
                else:
                    self._sent.append(Sent(picture, request_id, None))
                    yield request
        except Exception as error:
            self.failure = error
            raise

    def unsent(self) -> Iterator[tuple[str, TlcliError]]:
        """The request ids and errors of the pictures that come next and were not sent."""
        while self._sent and (error := self._sent[0].error) is not None:
            yield self._sent.popleft().request_id, error

    def answered(self) -> Sent:
        """The picture whose answer has come: answers come in the order of the requests."""
        return self._sent.popleft()
