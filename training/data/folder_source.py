"""Every image of a folder is read once before training: its fingerprint, and whether it can be decoded at all."""

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
from tlcli.training.data.dataset import Checked, is_near_uniform
from tlcli.training.runtime.progress import Advance
from tlcli.training.settings.config import cache_dir

_FORMAT = f"2, Pillow {PIL.__version__}, {len(decoding.FORMATS)} formats"
"""What a remembered check depends on beside the file: another Pillow may decode what this one refuses."""

_CHUNK = 64
"""Images a task: small ones take a tenth of a millisecond, less than handing a task to a thread."""


@dataclass(frozen=True)
class FolderSource:
    """Image files below `root`; an image's name is its path relative to `root`, with `/`."""

    root: Path

    def load(self, name: str) -> Image.Image:
        """See `tlcli.training.data.dataset.Source`."""
        try:
            return decoding.read(self.root / name)
        except NotFoundError as error:
            raise ImageError(f"{error} (it was there when the images were checked)") from error

    def check(self, names: Sequence[str], advance: Advance) -> dict[str, Checked]:
        """See `dataset.Source`. What was found is remembered by path, size and times of change, so a second run is quick."""
        memory = _Memory.open(self.root)
        stamps = {name: _stamp(self.root / name) for name in names}
        found = {name: known for name, stamp in stamps.items() if (known := memory.recall(name, stamp)) is not None}
        advance(len(found))
        missing = [name for name in names if name not in found]
        chunks = [missing[start : start + _CHUNK] for start in range(0, len(missing), _CHUNK)]
        with ThreadPoolExecutor(max_workers=2 * usable_cores()) as pool:  # reading waits, decoding leaves the GIL
            for checked in pool.map(self._check_chunk, chunks):
                found.update(checked)
                advance(len(checked))
        if missing:
            memory.keep({name: (stamps[name], found[name]) for name in names})
        return found

    def _check_chunk(self, names: list[str]) -> dict[str, Checked]:
        return {name: check_file(self.root / name) for name in names}


def check_file(path: Path) -> Checked:
    """Read, hash and decode one image file. Whatever is wrong with it is the answer's `reason`."""
    try:
        data = decoding.read_encoded(path, decoding.DEFAULT_LIMITS.max_bytes)
    except (NotFoundError, ImageError) as error:
        return Checked("", f"cannot be read: {str(error).removeprefix(f'{printable(str(path))}: ')}")
    fingerprint = hashlib.sha256(data).hexdigest()
    try:
        image = decoding.decode(data)
    except ImageError as error:
        return Checked(fingerprint, str(error))
    return Checked(fingerprint, near_uniform=is_near_uniform(image))


def _stamp(path: Path) -> list[int]:
    """Size and times. The time of the inode's change is among them, for an archive sets the other one as it likes."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


class _Memory:
    """Earlier checks of one folder, in a file of the cache. A file that is missing or odd is an empty memory."""

    def __init__(self, path: Path, entries: dict[str, list[object]]) -> None:
        self._path = path
        self._entries = entries

    @classmethod
    def open(cls, root: Path) -> _Memory:
        key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]
        path = cache_dir() / "scans" / f"{key}.json"
        try:
            kept = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return cls(path, {})
        entries = kept.get("images") if isinstance(kept, dict) and kept.get("format") == _FORMAT else None
        return cls(path, entries if isinstance(entries, dict) else {})

    def recall(self, name: str, stamp: list[int]) -> Checked | None:
        match self._entries.get(name):
            case [kept, str(fingerprint), str() | None as reason, bool(near_uniform)] if stamp and kept == stamp:
                return Checked(fingerprint, reason, near_uniform)
        return None

    def keep(self, checked: dict[str, tuple[list[int], Checked]]) -> None:
        for name, (stamp, found) in checked.items():
            if found.fingerprint:  # a file that could not be read at all is tried again
                self._entries[name] = [stamp, found.fingerprint, found.reason, found.near_uniform]
        text = json.dumps({"format": _FORMAT, "images": self._entries})
        with suppress(OSError), whole_file(self._path) as temporary:  # a cache that cannot be written costs time, nothing else
            temporary.write_text(text)
