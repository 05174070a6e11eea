"""Conversion of input images to queries, and the outgoing requests of a stream."""

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
"""Maximum size of an image file. A server has its own limit (`limits_max_bytes`)."""

ImageInput = bytes | str | Path | Image.Image | npt.NDArray[np.uint8]
"""Encoded image, path of an image file, Pillow image, or RGB array `[height, width, 3]` of uint8.

An array of the model's input size is used as the input directly. An array of any other size is resized and cropped like other images.
"""

InputSize = Callable[[], tuple[int, int]]
"""Function that returns the height and width of the model's input."""


def with_image(query: Query, image: ImageInput, input_size: InputSize | None = None) -> Query:
    """Return a copy of the query that contains the image.

    A Pillow image is rotated upright according to its EXIF data and sent as PNG, which loses nothing that the server would keep. An array
    whose size differs from the model's input is sent as PNG too.

    Args:
        query: query without an image.
        image: image to send.
        input_size: function that returns the input size, called only for an array. None: every array is used as the input directly.

    Raises:
        NotFoundError: no file exists at the path.
        ImageError: the file or the Pillow image cannot be read, or has a mode without colours.
        RequestError: the array has the wrong type or shape, or `image` is not an image.
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
    """Return True if the image is a uint8 array `[height, width, 3]` with at least one pixel."""
    return isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size > 0


def name_image(error: TlcliError, image: ImageInput) -> TlcliError:
    """Return the error, with the image's path added to the message if it is an `ImageError` and `image` is a path."""
    if isinstance(image, str | Path) and type(error) is ImageError:
        return ImageError(f"{image}: {error}")
    return error


@contextmanager
def naming(image: ImageInput) -> Iterator[None]:
    """Add the image's path to an `ImageError` that is raised within the block; see `name_image`."""
    try:
        yield
    except TlcliError as error:
        named = name_image(error, image)
        if named is error:
            raise
        raise named from error


@dataclass(frozen=True)
class Sent:
    """Image of a stream, which was either sent or could not be sent because of `error`."""

    image: ImageInput
    request_id: str
    error: TlcliError | None


class OutgoingStream:
    """Outgoing requests of a stream, and the order of their images. gRPC consumes the requests in its own thread.

    An image that cannot be sent keeps its place in the order, and `unsent` reports it to the reader of the responses.

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
        """Yield the request ids and errors of the images that are next in order but could not be sent."""
        while self._sent and (error := self._sent[0].error) is not None:
            yield self._sent.popleft().request_id, error

    def answered(self) -> Sent:
        """Return the image that belongs to the response just received. Responses arrive in the order of the requests."""
        return self._sent.popleft()
