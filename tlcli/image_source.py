"""Image sources in every form that callers can pass: paths, folders, URLs, encoded bytes, Pillow images and NumPy arrays."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image

from tlcli import __version__
from tlcli.contract.errors import ImageError, NotFoundError, RequestError, first_line
from tlcli.contract.files.display_name import printable
from tlcli.contract.images import decoding, heatmap
from tlcli.contract.images.decoding import DEFAULT_LIMITS, ImageLimits
from tlcli.contract.images.find_images import Skipped, find

ImageInput = str | Path | bytes | Image.Image | npt.NDArray[np.uint8]
"""Accepted forms of one image: a path, an `http://` or `https://` URL, encoded bytes, a Pillow image, or a uint8 array `[H, W, 3]`,
`[H, W]` or `[H, W, 4]`."""

URL_TIMEOUT_S = 30.0
_CHUNK = 64 * 1024
_GONE = (404, 410)


@dataclass(frozen=True, eq=False)
class ImageSource:
    """One image that has not been read yet.

    origin: the image in any form of `ImageInput`.
    name: path or URL shown in messages; empty for an image in memory.
    """

    origin: ImageInput
    name: str = ""

    def read(self, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
        """Read and decode the image to upright RGB without transparency.

        Raises:
            NotFoundError: the file or page does not exist.
            ImageError: the image cannot be decoded (see `tlcli.contract.images.decoding.decode`), or its download failed or took too long.
            RequestError: an array has an unsupported type or shape.
        """
        if isinstance(self.origin, Path):
            return decoding.read(self.origin, limits)
        if isinstance(self.origin, Image.Image):
            return _from_pillow(self.origin, limits)
        if isinstance(self.origin, np.ndarray):
            return _from_pillow(Image.fromarray(_pixels(self.origin)), limits)
        try:
            return decoding.decode(self.encoded(limits), limits)
        except ImageError as error:
            raise self._named(error) from error

    def encoded(self, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
        """Return the bytes of the encoded image. An image in memory is encoded as PNG.

        Raises:
            Exception: see `read`.
        """
        if isinstance(self.origin, bytes):
            return self.origin
        if isinstance(self.origin, Path):
            return decoding.read_encoded(self.origin, limits.max_bytes)
        if isinstance(self.origin, str):
            return download(self.origin, limits.max_bytes)
        return heatmap.encode(self.read(limits))

    def _named(self, error: ImageError) -> ImageError:
        name = printable(self.name)
        return ImageError(f"{name}: {error}") if name and not str(error).startswith(name) else error


def image_sources(images: ImageInput | Iterable[ImageInput], skipped: list[Skipped] | None = None) -> tuple[list[ImageSource], bool]:
    """Convert images to sources.

    Args:
        images: one image, a folder of images, or an iterable of these; also a uint8 array `[N, H, W, 3]`.
        skipped: list that collects the files in folders that are not images.

    Returns:
        The sources, and True if `images` is a single image.

    Raises:
        NotFoundError: a folder holds no images.
        RequestError: an object is not an image.
    """
    if isinstance(images, np.ndarray) and images.ndim == 4:
        return [_source(pixels) for pixels in images], False
    if _is_image(images):
        if _is_folder(images):
            return _in_folder(images, skipped), False
        return [_source(images)], True
    if not isinstance(images, Iterable):
        raise _no_image(images)
    sources: list[ImageSource] = []
    for image in images:
        sources += _in_folder(image, skipped) if _is_folder(image) else [_source(image)]
    return sources, False


def download(url: str, max_bytes: int, timeout_s: float = URL_TIMEOUT_S) -> bytes:
    """Download an image over HTTP or HTTPS.

    Args:
        url: address of the image; redirects are followed only to HTTP and HTTPS.
        max_bytes: maximum size of the image in bytes.
        timeout_s: time limit for the entire download in seconds.

    Raises:
        NotFoundError: the server has no such page (404, 410).
        ImageError: the image is too large, the download takes too long, or it fails in any other way.
    """
    shown, deadline = printable(url), time.monotonic() + timeout_s
    try:
        request = urllib.request.Request(url, headers={"User-Agent": f"tlcli/{__version__}", "Accept": "image/*,*/*;q=0.5"})
        with _opener().open(request, timeout=timeout_s) as response:
            return _read_body(response, response.headers, shown, max_bytes, deadline, timeout_s)
    except urllib.error.HTTPError as error:
        problem = f"{shown}: the server answers {error.code} {first_line(Exception(error.reason))}"
        raise (NotFoundError if error.code in _GONE else ImageError)(problem) from error
    except TimeoutError as error:
        raise _too_slow(shown, timeout_s) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise _too_slow(shown, timeout_s) from error
        raise ImageError(f"{shown}: cannot be downloaded: {error.reason}: check the URL and the connection") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ImageError(f"{shown}: cannot be downloaded: {error or type(error).__name__}: check the URL and the connection") from error


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener that supports only HTTP and HTTPS. urllib's default opener also reads local files and FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _read_body(body: IO[bytes], headers: Message, shown: str, max_bytes: int, deadline: float, timeout_s: float) -> bytes:
    announced = headers.get("Content-Length", "")
    if announced.isdigit() and int(announced) > max_bytes:
        raise ImageError(f"{shown}: the image has {int(announced):,} bytes: expected at most {max_bytes:,}")
    data = bytearray()
    while chunk := body.read1(_CHUNK) if isinstance(body, http.client.HTTPResponse) else body.read(_CHUNK):
        data += chunk
        if len(data) > max_bytes:
            raise ImageError(f"{shown}: the image has more than {max_bytes:,} bytes: use a smaller image")
        if time.monotonic() > deadline:
            raise _too_slow(shown, timeout_s)
    if announced.isdigit() and len(data) < int(announced):
        raise ImageError(f"{shown}: the connection closed after {len(data):,} of {int(announced):,} bytes: retry")
    return bytes(data)


def _too_slow(shown: str, timeout_s: float) -> ImageError:
    return ImageError(f"{shown}: the download took more than {timeout_s:g} s")


def is_url(image: object) -> bool:
    """Return True if `image` is a string that starts with `http://` or `https://`, in upper or lower case."""
    return isinstance(image, str) and image[:8].lower().startswith(("http://", "https://"))


def _is_image(image: object) -> bool:
    return isinstance(image, str | Path | bytes | bytearray | memoryview | Image.Image | np.ndarray)


def _is_folder(image: object) -> bool:
    return isinstance(image, str | Path) and not is_url(image) and Path(image).is_dir()


def _in_folder(folder: object, skipped: list[Skipped] | None) -> list[ImageSource]:
    assert isinstance(folder, str | Path)
    return [ImageSource(path, str(path)) for path in find([folder], skipped)]


def _source(image: object) -> ImageSource:
    """Convert one image to a source.

    Raises:
        RequestError: the object is not an image.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return ImageSource(bytes(image))
    if isinstance(image, str) and is_url(image):
        return ImageSource(image, image)
    if isinstance(image, str | Path):
        return ImageSource(Path(image), str(image))
    if isinstance(image, Image.Image):
        return ImageSource(image, str(getattr(image, "filename", "") or ""))
    if isinstance(image, np.ndarray):
        _pixels(image)
        return ImageSource(image)
    raise _no_image(image)


def _no_image(image: object) -> RequestError:
    return RequestError(
        f"expected an image as a path, a URL, encoded bytes, a Pillow image or a uint8 array [H, W, 3], [H, W] or [H, W, 4],"
        f" got {type(image).__name__}"
    )


def _pixels(array: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the array in a form that Pillow accepts: uint8 `[H, W]`, `[H, W, 3]` or `[H, W, 4]`.

    Raises:
        RequestError: the array has an unsupported type or shape.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    shape_fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype == np.uint8 and shape_fits and array.size:
        return np.ascontiguousarray(array)
    hint = ""
    if np.issubdtype(array.dtype, np.floating):
        hint = ": scale values in [0, 1] with `(255 * array).round().astype(numpy.uint8)`"
    elif array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.size:
        hint = ": move the channels to the end with `array.transpose(1, 2, 0)`"
    raise RequestError(f"expected an array uint8 [H, W, 3], [H, W] or [H, W, 4], got {array.dtype} {list(array.shape)}{hint}")


def _from_pillow(image: Image.Image, limits: ImageLimits) -> Image.Image:
    """Convert a Pillow image to the form that `decode` returns.

    Raises:
        ImageError: the image is empty or has too many pixels, its mode has no colours, or Pillow cannot read its file.
    """
    if image.width * image.height > limits.max_pixels:
        raise ImageError(f"the image has {image.width:,} x {image.height:,} pixels: expected at most {limits.max_pixels:,}")
    if not image.width * image.height:
        raise ImageError(f"the image is empty: {image.width} x {image.height} pixels")
    try:
        return decoding.to_rgb(image)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow reads an opened file lazily, at this point
        raise ImageError(f"the Pillow image cannot be read: {error}") from error
