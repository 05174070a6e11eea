"""Places of the images that a label file names, without opening them: one look at the file system for each image."""

from __future__ import annotations

import os
import posixpath
import re
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

from tlcli.contract.images.find_images import SUFFIXES, SYSTEM_FOLDERS, kind_of
from tlcli.training.data.label_files.remote_files import SCHEMES, is_remote, mirror_of, scheme_of

_UPLOAD = re.compile(r"/data/upload/(?:[^/]+/)*(?P<name>[^/]+)")
"""Path of an image uploaded to Label Studio."""

_UPLOAD_HASH = re.compile(r"[0-9a-f]{8}-(?P<name>.+)")
"""Name that Label Studio gives to an uploaded image."""

_LOCAL_FILES = re.compile(r"/data/local-files/\?d=(?P<path>.+)")
"""Path of an image in Label Studio's local storage."""

_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")

_MISSING = "no such file"

_MAX_INDEXED = 5_000_000
"""Maximum number of files that are searched for images named without their folder."""


class NotFound(Exception):  # noqa: N818  # not an error of the program
    """Reason why an image cannot be used, as one line."""


class ImagePaths:
    """Finder for the images of one label file.

    root: folder that relative names start from; for a remote label file, the folder of its copies.
    remote: URL of each image that has to be fetched, by its name.
    by_name: number of images that were found by their name alone, in a folder below `root`.
    """

    def __init__(self, root: Path, base: str) -> None:
        """Create a finder.

        Args:
            root: folder that relative paths start from.
            base: the same folder as the label file gives it: a path, or a URL that ends with a slash.
        """
        self.root = root
        self.remote: dict[str, str] = {}
        self.by_name: list[tuple[str, str]] = []
        self._base = base
        self._is_remote = is_remote(base)
        self._prefix = f"{root}{os.sep}"
        self._index: dict[str, list[str]] | None = None

    def find(self, path: str, others: Sequence[str] = ()) -> str:
        """Return the name of an image: its path relative to `root` with `/` as separator, or its absolute path.

        The path is tried as written first, and then without spaces around it, with `/` for Windows' separators, in the other Unicode
        normal form, and, if it has no folder, anywhere below `root`.

        Raises:
            NotFound: there is no such file, it is not a file, or several images have the name.
        """
        if not path.isascii() and path.encode("utf-8", "ignore").decode() != path:
            raise NotFound("a character that is not valid Unicode")
        if "://" in path:
            return self._find_url(path.strip())
        if self._is_remote:
            return self._find_below_url(path)
        name = self._normal(path)
        problem = self._look(name)
        if problem is None:
            return name
        for candidate in _spellings(path, others):
            other = self._normal(candidate)
            if other and other != name and self._look(other) is None:
                return other
        found = self._find_by_name(path) if problem == _MISSING else None
        if found is not None:
            return found
        raise NotFound(problem)

    def _normal(self, path: str) -> str:
        """Return a path without needless parts, and relative to `root` if it is below it, so that equal images have equal names."""
        if "./" in path or "//" in path or path.startswith(self._prefix):
            if path.startswith(self._prefix):
                path = path[len(self._prefix) :]
            if "../" not in path:  # a parent of a link is not the folder that it is in
                path = posixpath.normpath(path)
        return path

    def _look(self, name: str) -> str | None:
        """Return None for a file, and otherwise the reason why it is none."""
        try:
            mode = os.stat(name if name.startswith("/") else self._prefix + name).st_mode
        except FileNotFoundError:
            return _MISSING
        except (OSError, ValueError) as error:
            return f"{getattr(error, 'strerror', None) or error}".lower()
        return None if stat.S_ISREG(mode) else f"is {kind_of(mode)}"

    def _find_url(self, url: str) -> str:
        if scheme_of(url) == "file":
            return self.find(unquote(url[len("file://") :].removeprefix("localhost")))
        if not is_remote(url):
            raise NotFound(f"unknown kind of URL: expected a path or one of {SCHEMES}")
        copy = str(mirror_of(url))
        name = self._normal(copy)
        self.remote[name] = url
        return name

    def _find_below_url(self, path: str) -> str:
        relative = posixpath.normpath(path.strip().replace("\\", "/"))
        if relative.startswith(("../", "/")) or relative in ("..", ".") or _DRIVE.match(path):
            raise NotFound("outside of the label file's folder: expected a path below it, or a URL")
        return self._find_url(self._base + (quote(relative) if scheme_of(self._base) in ("http", "https") else relative))

    def _find_by_name(self, path: str) -> str | None:
        """Return the only image below `root` with the name of a path that has no folder, or of Label Studio's.

        Raises:
            NotFound: several images have the name.
        """
        names = _bare_names(path)
        for name in names:
            places = [place for place in self._indexed().get(name, ()) if self._look(place) is None]
            if len(places) > 1:
                raise NotFound(f"several images have this name, such as {places[0]} and {places[1]}: write the folder before it")
            if places:
                self.by_name.append((path, places[0]))
                return places[0]
        return None

    def _indexed(self) -> dict[str, list[str]]:
        """Return up to two places below `root` for each name of an image, with and without its suffix."""
        if self._index is None:
            self._index = {}
            for number, (folder, name) in enumerate(_walk(self.root)):
                if number >= _MAX_INDEXED:
                    break
                place = name if folder == "." else f"{folder}/{name}"
                for key in {name, os.path.splitext(name)[0]}:
                    places = self._index.setdefault(key, [])
                    if len(places) < 2:
                        places.append(place)
        return self._index


def describe_elsewhere(path: str) -> str:
    """Return a hint for an absolute path of another machine; empty for a relative one."""
    if _DRIVE.match(path):
        return "absolute Windows paths do not exist here: make them relative to the label file"
    return "absolute paths must exist on this machine: make them relative to the label file" if path.startswith("/") else ""


def _walk(root: Path) -> Iterator[tuple[str, str]]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name.lower() not in SYSTEM_FOLDERS)
        relative = os.path.relpath(folder, root).replace(os.sep, "/")
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith("."):
                yield relative, name


def _spellings(path: str, others: Sequence[str]) -> Iterator[str]:
    """Yield other spellings of a path that is not found as written."""
    stripped = path.strip()
    local = _LOCAL_FILES.fullmatch(stripped)
    plain = unquote(local["path"]) if local else stripped
    for candidate in (plain, plain.replace("\\", "/"), *others):
        for form in ("NFC", "NFD"):
            yield unicodedata.normalize(form, candidate)
        yield candidate


def _bare_names(path: str) -> list[str]:
    """Return the names to search for: that of a path without a folder, and those that an upload to Label Studio may have had."""
    stripped = path.strip()
    upload = _UPLOAD.fullmatch(stripped)
    name = unquote(upload["name"]) if upload else stripped
    if "/" in name or "\\" in name or not name:
        return []
    hashed = _UPLOAD_HASH.fullmatch(name) if upload else None
    return [name, hashed["name"]] if hashed else [name]
