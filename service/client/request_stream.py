"""Conversion of a caller's images to queries, and the requests of a stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from tlcli.contract.errors import ImageError, RequestError, TlcliError
from tlcli.contract.images import decoding, heatmap
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.protocol import codec
from tlcli.service.types.query import Query

_MAX_BYTES = 512 * 1024 * 1024
"""Limit on a file; a server has its own limit (`limits_max_bytes`)."""

ImageInput = bytes | str | Path | Image.Image | npt.NDArray[np.uint8]
"""An encoded image, its path, a Pillow image, or a uint8 array `[height, width, 3]`, RGB.

An array of the model's input size is used as the input directly; an array of another size is resized and cropped like any image.
"""

InputSize = Callable[[], tuple[int, int]]
"""Returns the height and width of the model's input."""


def with_image(query: Query, image: ImageInput, input_size: InputSize | None = None) -> Query:
    """Return the query with its image.

    A Pillow image is sent as PNG, turned upright by its EXIF data; this loses nothing that the server would keep. An array of another
    size than the model's input is sent as PNG too.

    Args:
        query: query without an image.
        image: image to send.
        input_size: called only for an array; None uses every array as the input directly.

    Raises:
        NotFoundError: there is no file at the path.
        ImageError: the file or the Pillow image cannot be read, or has a mode without colours.
        RequestError: the array has another type or shape, or the argument is not an image.
    """
    if isinstance(image, bytes):
        return replace(query, encoded=image)
    if isinstance(image, str | Path):
        return replace(query, encoded=decoding.read_encoded(image, _MAX_BYTES))
    if isinstance(image, Image.Image):
        try:
            return replace(query, encoded=heatmap.encode(decoding.to_rgb(image)))
        except OSError as error:  # Pillow reads the file only now
            raise ImageError(f"the Pillow image cannot be read: {error}") from error
    if isinstance(image, np.ndarray) and is_pixels(image):
        if input_size is None or image.shape[:2] == input_size():
            return replace(query, pixels=image.tobytes())
        return replace(query, encoded=heatmap.encode(Image.fromarray(np.ascontiguousarray(image))))
    received = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
    raise RequestError(f"expected an image as bytes, a path, a Pillow image or a uint8 array [height, width, 3], not {received}")


def is_pixels(image: ImageInput) -> bool:
    """Return True for a uint8 array `[height, width, 3]` with at least one pixel."""
    return isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size > 0


def name_image(error: TlcliError, image: ImageInput) -> TlcliError:
    """Return the error, with the path of the image in its message if it is an ImageError and the image has a path."""
    if isinstance(image, str | Path) and type(error) is ImageError:
        return ImageError(f"{image}: {error}")
    return error


@contextmanager
def naming(image: ImageInput) -> Iterator[None]:
    """Add the path of the image to an ImageError raised within the block; see `name_image`."""
    try:
        yield
    except TlcliError as error:
        named = name_image(error, image)
        if named is error:
            raise
        raise named from error


@dataclass(frozen=True)
class Sent:
    """Image of a stream: sent, or not sent because of an error."""

    image: ImageInput
    request_id: str
    error: TlcliError | None


class OutgoingStream:
    """Requests of a stream, consumed by gRPC in a thread of its own, with the order in which they were sent.

    An image that cannot be sent keeps its place in the order; `unsent` reports it to the reader of the answers.

    failure: exception raised by the caller's iterable, or None.
    """

    def __init__(self, images: Iterable[ImageInput], query: Query, input_size: InputSize | None = None) -> None:
        self._images = images
        self._query = query
        self._input_size = input_size
        self._sent: deque[Sent] = deque()
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[pb.ClassifyRequest]:
        try:
            for number, image in enumerate(self._images):
                request_id = str(number)
                try:
                    request = codec.write_request(with_image(replace(self._query, request_id=request_id), image, self._input_size))
                except TlcliError as error:
                    self._sent.append(Sent(image, request_id, error))
                else:
                    self._sent.append(Sent(image, request_id, None))
                    yield request
        except Exception as error:
            self.failure = error
            raise

    def unsent(self) -> Iterator[tuple[str, TlcliError]]:
        """Yield the request ids and errors of the images that are next in order and were not sent."""
        while self._sent and (error := self._sent[0].error) is not None:
            yield self._sent.popleft().request_id, error

    def answered(self) -> Sent:
        """Return the image of the answer just received. Answers arrive in the order of the requests."""
        return self._sent.popleft()
