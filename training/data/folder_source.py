"""Image source for folders. Each image is read and decoded once before training, and the check results are cached."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import PIL
from PIL import Image

from tlcli.contract.errors import ImageError, NotFoundError
from tlcli.contract.files.atomic_file import whole_file
from tlcli.contract.files.display_name import printable
from tlcli.contract.images import decoding
from tlcli.contract.process.cores import usable_cores
from tlcli.training.data.dataset import CheckResult, is_near_uniform
from tlcli.training.runtime.progress import Advance
from tlcli.training.settings.config import cache_dir

_FORMAT = f"2, Pillow {PIL.__version__}, {len(decoding.FORMATS)} formats"
"""Format version of the cached results. It includes the Pillow version, since another version may decode images this one rejects."""

_CHUNK = 64
"""Images per thread pool task. Checking a small image takes 0.1 ms, less than the cost of submitting a task to a thread."""


@dataclass(frozen=True)
class FolderSource:
    """Image source for the files below `root`. Images are named by their path relative to `root`, with `/` as separator."""

    root: Path

    def load(self, name: str) -> Image.Image:
        """Load an image by name; see `tlcli.training.data.dataset.Source.load`."""
        try:
            return decoding.read(self.root / name)
        except NotFoundError as error:
            raise ImageError(f"{error} (it was readable when the images were checked): restore the file, or start a new run") from error

    def check(self, names: Sequence[str], advance: Advance) -> dict[str, CheckResult]:
        """Read each image once and report progress; see `tlcli.training.data.dataset.Source.check`.

        Results are cached by path, size, modification time and inode change time, so that a second run is fast.
        """
        cache = _CheckCache.open(self.root)
        stamps = {name: _stamp(self.root / name) for name in names}
        results = {name: cached for name, stamp in stamps.items() if (cached := cache.get(name, stamp)) is not None}
        advance(len(results))
        missing = [name for name in names if name not in results]
        chunks = [missing[start : start + _CHUNK] for start in range(0, len(missing), _CHUNK)]
        with ThreadPoolExecutor(max_workers=2 * usable_cores()) as pool:  # reading waits for I/O, and decoding releases the GIL
            for checked in pool.map(self._check_chunk, chunks):
                results.update(checked)
                advance(len(checked))
        if missing:
            cache.update({name: (stamps[name], results[name]) for name in names})
        return results

    def _check_chunk(self, names: list[str]) -> dict[str, CheckResult]:
        return {name: check_file(self.root / name) for name in names}


def check_file(path: Path) -> CheckResult:
    """Read, hash and decode an image file. Read and decoding errors are returned as the `reason` of the result."""
    try:
        data = decoding.read_encoded(path, decoding.DEFAULT_LIMITS.max_bytes)
    except (NotFoundError, ImageError) as error:
        return CheckResult("", f"cannot be read: {str(error).removeprefix(f'{printable(str(path))}: ')}")
    fingerprint = hashlib.sha256(data).hexdigest()
    try:
        image = decoding.decode(data)
    except ImageError as error:
        return CheckResult(fingerprint, str(error))
    return CheckResult(fingerprint, near_uniform=is_near_uniform(image))


def _stamp(path: Path) -> list[int]:
    """Return a file's size, modification time and inode change time; an empty list if the file is not accessible.

    The change time is included because unpacking an archive restores the modification time.
    """
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


class _CheckCache:
    """File cache of the check results for one folder. A missing or invalid file is treated as an empty cache."""

    def __init__(self, path: Path, entries: dict[str, list[object]]) -> None:
        self._path = path
        self._entries = entries

    @classmethod
    def open(cls, root: Path) -> _CheckCache:
        key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]
        path = cache_dir() / "scans" / f"{key}.json"
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return cls(path, {})
        entries = content.get("images") if isinstance(content, dict) and content.get("format") == _FORMAT else None
        return cls(path, entries if isinstance(entries, dict) else {})

    def get(self, name: str, stamp: list[int]) -> CheckResult | None:
        match self._entries.get(name):
            case [cached, str(fingerprint), str() | None as reason, bool(near_uniform)] if stamp and cached == stamp:
                return CheckResult(fingerprint, reason, near_uniform)
        return None

    def update(self, checked: dict[str, tuple[list[int], CheckResult]]) -> None:
        for name, (stamp, result) in checked.items():
            if result.fingerprint:  # a file that could not be read at all is retried next time
                self._entries[name] = [stamp, result.fingerprint, result.reason, result.near_uniform]
        text = json.dumps({"format": _FORMAT, "images": self._entries})
        with suppress(OSError), whole_file(self._path) as temporary:  # without a cache, the next run is merely slower
            temporary.write_text(text)
