"""Search for images in folders: which files are images, which folders are skipped, and which links are followed.

A file is recognised as an image by its suffix, or with any other suffix, or none, by its first bytes. Hidden files and folders, and those
that an operating system or a network drive keeps, are skipped. A link to a folder is followed once, and never to a folder that was
already read or that contains the current one. Only regular files are opened: a FIFO would wait for a writer.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tlcli.contract.errors import NotFoundError
from tlcli.contract.files.display_name import printable
from tlcli.contract.images import heif

HEIF_READ = heif.register()
"""True if HEIC images can be decoded."""

_HEIF_SUFFIXES = frozenset({".heic", ".heif", ".heics", ".heifs", ".hif"})

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif", ".avifs"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".mpo"}
    | (_HEIF_SUFFIXES if HEIF_READ else set())
)
"""Suffixes of image formats that `tlcli.contract.images.decoding` decodes."""

UNREAD_SUFFIXES = frozenset(
    {".svg", ".psd", ".psb", ".tga", ".ico", ".icns", ".dds", ".pcx", ".sgi", ".qoi", ".jxl", ".jxr", ".eps", ".exr", ".hdr", ".xcf"}
    | {".dng", ".cr2", ".cr3", ".crw", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".dcm", ".dicom", ".nii", ".fits", ".wmf", ".emf"}
    | (set() if HEIF_READ else _HEIF_SUFFIXES)
)
"""Suffixes of image formats that are not supported."""

SYSTEM_FOLDERS = frozenset(
    {"__macosx", "@eadir", "$recycle.bin", "recycler", "lost+found", "system volume information", "#recycle", "#snapshot", "@recycle"}
    | {"@recently-snapshot", "@tmp", "@sharebin", "__pycache__"}
)
"""Names, in lower case, of folders that an operating system, a network drive or Python keeps."""

_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store", "icon\r", "@syno_dir"})

_Identity = tuple[int, int]
"""Device and inode."""

_SNIFFED = 64

_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|II[*+]\0|MM\0[*+]|....ftypavi[fs]|....ftyp(?:mif1|msf1).{0,48}avi[fs]"
    rb"|BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0|P[1-6]\s+(?:#[^\n]*\n\s*)*\d+\s|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    re.DOTALL,
)
"""First bytes of the formats of `SUFFIXES`. Some match loosely; decoding then decides."""


@dataclass(frozen=True)
class Skipped:
    """A file or folder that was not read.

    name: its path below the searched folder.
    reason: one line.
    is_folder: True for a folder.
    unread_image: True for an image of an unsupported format.
    """

    name: str
    reason: str
    is_folder: bool = False
    unread_image: bool = False


@dataclass(frozen=True)
class Entries:
    """Contents of one folder.

    folders, images: their names, sorted; `folders` includes links to folders.
    links: the names of the links among the folders.
    skipped: everything else.
    """

    folders: tuple[str, ...]
    links: frozenset[str]
    images: tuple[str, ...]
    skipped: tuple[Skipped, ...]


class Scanner:
    """Reader of the folders below `root`. All names are paths below it, with `/`; `""` is the root itself."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.skipped: dict[str, Skipped] = {}
        self._entries: dict[str, Entries] = {}
        self._above: frozenset[_Identity] | None = None

    def look(self, folder: str) -> Entries:
        """Return the contents of a folder, read once and then cached.

        Raises:
            NotFoundError: the folder cannot be listed.
        """
        if folder not in self._entries:
            self._entries[folder] = self._list(folder)
        return self._entries[folder]

    def skip(self, name: str, reason: str, is_folder: bool = False) -> None:
        """Record a file or folder as skipped."""
        self.skipped.setdefault(name, Skipped(name, reason, is_folder))

    def note(self, folder: str, images: str | None = None) -> None:
        """Record what is skipped in a folder.

        Args:
            folder: a folder that is read.
            images: the reason why its images are skipped as well, if they are.
        """
        entries = self.look(folder)
        self.skipped.update({entry.name: entry for entry in entries.skipped})
        if images is not None:
            for name in entries.images:
                self.skip(join(folder, name), images)

    def gather(self, *groups: Sequence[str]) -> dict[str, list[str]]:
        """Return the images below each folder of each group, sorted by name, and record what is skipped.

        Within a group each folder is read once, and all folders before the links in them, so a link never takes images away from the
        folder that it points to. A link in one group is not followed into another group.

        Args:
            groups: folders that share no image: the classes of one part.

        Raises:
            NotFoundError: a folder cannot be listed.
        """
        images: dict[str, list[str]] = {folder: [] for group in groups for folder in group}
        read: list[set[_Identity]] = [set() for _ in groups]
        links: list[tuple[int, str, str]] = []
        for number, group in enumerate(groups):
            for folder in group:
                if self._is_link(folder):
                    links.append((number, folder, folder))
                else:
                    links += [(number, folder, link) for link in self._walk(folder, images[folder], read[number], set())]
        others = [set[_Identity]().union(*read[:number], *read[number + 1 :]) for number in range(len(groups))]
        for number, owner, link in links:  # the list grows during the loop
            elsewhere = set[_Identity]() if link == owner else others[number]
            links += [(number, owner, nested) for nested in self._walk(link, images[owner], read[number], elsewhere)]
        return {folder: sorted(names) for folder, names in images.items()}

    def _walk(self, top: str, images: list[str], read: set[_Identity], elsewhere: set[_Identity]) -> list[str]:
        """Add the images below `top` to `images` and its folders to `read`. Return the links to folders below it."""
        links: list[str] = []
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            identity = _identity(self.root / folder)
            if identity is not None and (identity in read or identity in elsewhere):
                self.skip(folder, "leads to a folder that was already read", is_folder=True)
                continue
            if identity is not None:
                read.add(identity)
            entries = self.look(folder)
            self.note(folder)
            images += [join(folder, name) for name in entries.images]
            for name in entries.folders:
                (links if name in entries.links else waiting).append(join(folder, name))
        return links

    def holds_images(self, folder: str) -> bool:
        """Check for an image in a folder or below it. Links are only followed in the folder itself."""
        waiting = [folder]
        while waiting:
            place = waiting.pop()
            entries = self.look(place)
            if entries.images:
                return True
            waiting += [join(place, name) for name in entries.folders if name not in entries.links or place == folder]
        return False

    def below(self, folder: str) -> list[Skipped]:
        """Return everything that is skipped in a folder and below it, without following links."""
        skipped: list[Skipped] = []
        waiting = [folder]
        while waiting:
            place = waiting.pop()
            entries = self.look(place)
            skipped += entries.skipped
            waiting += [join(place, name) for name in entries.folders if name not in entries.links]
        return skipped

    def _is_link(self, folder: str) -> bool:
        parent, _, name = folder.rpartition("/")
        return folder != "" and name in self.look(parent).links

    def _list(self, folder: str) -> Entries:
        place = self.root / folder
        try:
            with os.scandir(place) as opened:
                entries = sorted(opened, key=lambda entry: entry.name)
        except OSError as error:
            raise NotFoundError(
                f"{printable(str(place))}: cannot be listed: {error.strerror or error}: make it readable, or remove it"
            ) from error
        folders: list[str] = []
        links: set[str] = set()
        images: list[str] = []
        skipped: list[Skipped] = []
        for entry in entries:
            name = join(folder, entry.name)
            mode, reason = _kind(entry)
            if reason is not None:
                skipped.append(Skipped(name, reason))
            elif stat.S_ISDIR(mode):
                why = _why_not_folder(entry.name) or self._why_not_followed(entry)
                if why is not None:
                    skipped.append(Skipped(name, why, is_folder=True))
                else:
                    folders.append(entry.name)
                    if entry.is_symlink():
                        links.add(entry.name)
            elif not _is_quiet(entry.name):
                why_not = _why_not_image(entry)
                if why_not is None:
                    images.append(entry.name)
                else:
                    skipped.append(Skipped(name, why_not[0], unread_image=why_not[1]))
        return Entries(tuple(folders), frozenset(links), tuple(images), tuple(skipped))

    def _why_not_followed(self, entry: os.DirEntry[str]) -> str | None:
        if not entry.is_symlink():
            return None
        if self._above is None:
            root = self.root.resolve()
            self._above = frozenset(identity for parent in (root, *root.parents) if (identity := _identity(parent)) is not None)
        return "leads to a folder that holds it" if _identity(Path(entry.path)) in self._above else None


def find(paths: Iterable[str | Path], skipped: list[Skipped] | None = None) -> list[Path]:
    """Return the image files in `paths`: files as they are, folders searched, sorted within each folder.

    Args:
        paths: files and folders.
        skipped: a list to which everything skipped in the folders is added, with the folder in its name.

    Raises:
        NotFoundError: a path that does not exist, a folder that cannot be listed, or one without an image.
    """
    images: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            scanner = Scanner(path)
            inside = sorted(path / name for name in scanner.gather([""])[""])
            left_out = [replace(entry, name=str(path / entry.name)) for entry in scanner.skipped.values()]
            if not inside:
                example = f"; left out: {printable(left_out[0].name)}: {left_out[0].reason}" if left_out else ""
                raise NotFoundError(f"{printable(str(path))}: no image in this folder{example}")
            images.extend(inside)
            if skipped is not None:
                skipped.extend(left_out)
        elif path.exists() or path.is_symlink():
            images.append(path)
        else:
            raise NotFoundError(f"{printable(str(path))}: no such file or folder")
    return images


def describe(skipped: Sequence[Skipped], shown: int = 3) -> list[str]:
    """Return a line for each skipped folder, and one for all files that were skipped for the same reason."""
    lines = [f"left out: folder {printable(entry.name)}: {entry.reason}" for entry in skipped if entry.is_folder]
    by_reason: dict[str, list[str]] = {}
    for entry in skipped:
        if not entry.is_folder:
            by_reason.setdefault(entry.reason, []).append(printable(entry.name))
    for reason, names in by_reason.items():
        more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
        count = "" if len(names) == 1 else f"{len(names):,} files: "
        lines.append(f"left out: {count}{', '.join(names[:shown])}{more}: {reason}")
    return lines


def is_image(head: bytes) -> bool:
    """Check the first bytes of a file, up to 64, for a supported format."""
    return _MAGIC.match(head) is not None or (HEIF_READ and heif.is_heif(head))


def join(folder: str, name: str) -> str:
    """Return the path of a name in a folder; `""` is the root."""
    return f"{folder}/{name}" if folder else name


def _identity(path: Path) -> _Identity | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _kind(entry: os.DirEntry[str]) -> tuple[int, str | None]:
    """Return the mode of an entry with links resolved, and the reason to skip it if it is neither a file nor a folder."""
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        if entry.is_symlink():
            return 0, "a link that leads nowhere"
        return 0, f"cannot be read: {error.strerror or error}"
    return mode, None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else kind_of(mode)


def kind_of(mode: int) -> str:
    """Return the English name of a file type other than a regular file, from its mode."""
    if stat.S_ISFIFO(mode):
        return "a FIFO (named pipe)"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a folder" if stat.S_ISDIR(mode) else "a device"


def _why_not_folder(name: str) -> str | None:
    if name.lower() in SYSTEM_FOLDERS:
        return "a folder of the system, not of images"
    return "hidden" if name.startswith(".") else None


def _is_quiet(name: str) -> bool:
    """Check for files that systems put into every folder, which are skipped without a message."""
    hidden_image = name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES | UNREAD_SUFFIXES
    return name.startswith("._") or name.lower() in _SYSTEM_FILES or (name.startswith(".") and not hidden_image)


def _why_not_image(entry: os.DirEntry[str]) -> tuple[str, bool] | None:
    """Return the reason why a file is not an image and True if it is one of an unsupported format; None for an image."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if entry.name.startswith("."):
        return "hidden", False
    if suffix in SUFFIXES:
        return None
    try:
        with open(entry.path, "rb") as file:
            head = file.read(_SNIFFED)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}", suffix in UNREAD_SUFFIXES
    if is_image(head):
        return None
    if heif.is_heif(head) or suffix in _HEIF_SUFFIXES:
        return heif.missing(), True
    if suffix in UNREAD_SUFFIXES:
        return f"an image of a format that is not read ({suffix}): convert it to PNG or JPEG", True
    return "empty" if not head else "not an image, by its name and its content", False
