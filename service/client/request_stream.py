"""Images, as a caller has them, into queries."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
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
"""Bound on a file; a server has its own (`limits_max_bytes`)."""

ImageInput = bytes | str | Path | Image.Image | npt.NDArray[np.uint8]
"""An encoded image, its path, a Pillow image, or a uint8 array `[height, width, 3]`, RGB. An array of the model's own input size is the
input itself; an array of any other size is resized and cropped as every image is."""

InputSize = Callable[[], tuple[int, int]]
"""Ask for the height and width of the model's input."""


def with_image(query: Query, image: ImageInput, input_size: InputSize | None = None) -> Query:
    """The query, with its image.

    A Pillow image is sent as PNG, turned upright by its EXIF data, which loses nothing that the server would keep. So is an array that is
    not of the model's input size.

    Args:
        query: what to ask.
        image: to ask about.
        input_size: called for an array alone; None: an array is always the input itself.

    Raises:
        NotFoundError: no file at the path.
        ImageError: a file that may not be read, a Pillow image that cannot be read, or of a mode without colours.
        RequestError: an array of another type or shape, or no image at all.
    """
    if isinstance(image, bytes):
        return replace(query, encoded=image)
    if isinstance(image, str | Path):
        return replace(query, encoded=decoding.read_encoded(image, _MAX_BYTES))
    if isinstance(image, Image.Image):
        try:
            return replace(query, encoded=heatmap.encode(decoding.to_rgb(image)))
        except OSError as error:  # Pillow reads a file it has opened only now
            raise ImageError(f"the Pillow image cannot be read: {error}") from error
    if isinstance(image, np.ndarray) and is_pixels(image):
        if input_size is None or image.shape[:2] == input_size():
            return replace(query, pixels=image.tobytes())
        return replace(query, encoded=heatmap.encode(Image.fromarray(np.ascontiguousarray(image))))
    came = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
    raise RequestError(f"an image is bytes, a path, a Pillow image or a uint8 array [height, width, 3]; {came} came")


def is_pixels(image: ImageInput) -> bool:
    """True for a uint8 array `[height, width, 3]` with at least one pixel."""
    return isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size > 0


def name_image(error: TlcliError, image: ImageInput) -> TlcliError:
    """The error, saying which file it is about, where the image is one and the error about images."""
    if isinstance(image, str | Path) and type(error) is ImageError:
        return ImageError(f"{image}: {error}")
    return error


@dataclass(frozen=True)
class Sent:
    """One image of a stream: asked about, or not sent for an error."""

    image: ImageInput
    request_id: str
    error: TlcliError | None


class OutgoingStream:
    """The requests of a stream, drawn by gRPC in a thread of its own, and the order in which they went.

    An image that cannot be sent keeps its place: `unsent` tells it to the reader of the answers.

    failure: what the caller's own iterable raised, if it did.
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
        """The request ids and errors of the images that come next and were not sent."""
        while self._sent and (error := self._sent[0].error) is not None:
            yield self._sent.popleft().request_id, error

    def answered(self) -> Sent:
        """The image whose answer has come: answers come in the order of the requests."""
        return self._sent.popleft()
