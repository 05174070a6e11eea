"""Search for images in folders.

A file is recognised as an image by its suffix or, if the suffix is unknown or missing, by its first bytes. Hidden files and folders are
skipped, as are those that operating systems and network drives create. A link to a folder is followed once, unless the folder was already
read or contains the searched folder. Only regular files are opened, because opening a FIFO would wait for a writer.
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
"""Suffixes of the image formats that `tlcli.contract.images.decoding` can decode."""

UNREAD_SUFFIXES = frozenset(
    {".svg", ".psd", ".psb", ".tga", ".ico", ".icns", ".dds", ".pcx", ".sgi", ".qoi", ".jxl", ".jxr", ".eps", ".exr", ".hdr", ".xcf"}
    | {".dng", ".cr2", ".cr3", ".crw", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".dcm", ".dicom", ".nii", ".fits", ".wmf", ".emf"}
    | (set() if HEIF_READ else _HEIF_SUFFIXES)
)
"""Suffixes of image formats that cannot be decoded."""

SYSTEM_FOLDERS = frozenset(
    {"__macosx", "@eadir", "$recycle.bin", "recycler", "lost+found", "system volume information", "#recycle", "#snapshot", "@recycle"}
    | {"@recently-snapshot", "@tmp", "@sharebin", "__pycache__"}
)
"""Lower-case names of folders that operating systems, network drives and Python create."""

_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store", "icon\r", "@syno_dir"})

_Identity = tuple[int, int]
"""Device and inode numbers, which identify a folder."""

_SNIFFED = 64

_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|II[*+]\0|MM\0[*+]|....ftypavi[fs]|....ftyp(?:mif1|msf1).{0,48}avi[fs]"
    rb"|BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0|P[1-6]\s+(?:#[^\n]*\n\s*)*\d+\s|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    re.DOTALL,
)
"""First bytes of files in the formats of `SUFFIXES`. Some patterns are loose; decoding then determines whether the file is an image."""


@dataclass(frozen=True)
class Skipped:
    """File or folder that was skipped.

    name: path relative to the searched folder.
    reason: reason for skipping, one line.
    is_folder: True for a folder.
    unread_image: True for an image in an unsupported format.
    """

    name: str
    reason: str
    is_folder: bool = False
    unread_image: bool = False


@dataclass(frozen=True)
class Entries:
    """Contents of one folder.

    folders, images: sorted names; `folders` includes links to folders.
    links: names of those folders that are links.
    skipped: all other entries, except for system files that are ignored silently.
    """

    folders: tuple[str, ...]
    links: frozenset[str]
    images: tuple[str, ...]
    skipped: tuple[Skipped, ...]


class Scanner:
    """Scanner for the folders below `root`. Names are paths relative to the root with `/` as separator; `""` is the root itself."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.skipped: dict[str, Skipped] = {}
        self._entries: dict[str, Entries] = {}
        self._above: frozenset[_Identity] | None = None

    def look(self, folder: str) -> Entries:
        """Return the contents of a folder. They are cached after the first read.

        Raises:
            NotFoundError: the folder cannot be listed.
        """
        if folder not in self._entries:
            self._entries[folder] = self._list(folder)
        return self._entries[folder]

    def skip(self, name: str, reason: str, is_folder: bool = False) -> None:
        """Record a file or folder as skipped, unless it is already recorded."""
        self.skipped.setdefault(name, Skipped(name, reason, is_folder))

    def note(self, folder: str, images: str | None = None) -> None:
        """Record the skipped entries of a folder.

        Args:
            folder: name of the folder.
            images: reason for skipping the folder's images as well; None if they are not skipped.
        """
        entries = self.look(folder)
        self.skipped.update({entry.name: entry for entry in entries.skipped})
        if images is not None:
            for name in entries.images:
                self.skip(join(folder, name), images)

    def gather(self, *groups: Sequence[str]) -> dict[str, list[str]]:
        """Collect the images below each folder of each group, and record skipped entries.

        Within a group, each folder is read once, and links are followed only after all real folders, so a link never takes images away
        from the folder to which it points. A link inside a folder of one group is not followed into another group.

        Args:
            groups: groups of folders; within a group, each image belongs to one folder only. A group holds the class folders of one split.

        Returns:
            Sorted image names by folder.

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
        """Add the images below `top` to `images`, and the folders that were read to `read`.

        Returns:
            Links to folders below `top`, which are not followed.
        """
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
        """Return True if there is an image in a folder or below it. Only links directly in the folder are followed."""
        waiting = [folder]
        while waiting:
            place = waiting.pop()
            entries = self.look(place)
            if entries.images:
                return True
            waiting += [join(place, name) for name in entries.folders if name not in entries.links or place == folder]
        return False

    def below(self, folder: str) -> list[Skipped]:
        """Return all skipped entries in a folder and below it, without following links."""
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
    """Return the image files in `paths`. Files are returned unchecked; folders are searched, and their images sorted.

    Args:
        paths: files and folders.
        skipped: list to which all skipped entries of the folders are appended, with the folder in their names.

    Raises:
        NotFoundError: a path does not exist, or a folder cannot be listed or contains no image.
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
    """Return message lines about skipped entries: one per folder, and one per reason for all files that were skipped for it.

    Args:
        skipped: skipped files and folders.
        shown: maximum number of file names per line.
    """
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
    """Return True if the first bytes of a file (up to 64) match a supported image format."""
    return _MAGIC.match(head) is not None or (HEIF_READ and heif.is_heif(head))


def join(folder: str, name: str) -> str:
    """Join a folder and a name to a path. The folder `""` is the root."""
    return f"{folder}/{name}" if folder else name


def _identity(path: Path) -> _Identity | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _kind(entry: os.DirEntry[str]) -> tuple[int, str | None]:
    """Return the mode of an entry with links resolved, and the reason for skipping it, or None for a regular file or folder."""
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        if entry.is_symlink():
            return 0, "a link that leads nowhere"
        return 0, f"cannot be read: {error.strerror or error}"
    return mode, None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else kind_of(mode)


def kind_of(mode: int) -> str:
    """Return the name, for messages, of a file type other than a regular file."""
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
    """Return True for hidden and system files that are skipped without a message. Hidden images are not among them."""
    hidden_image = name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES | UNREAD_SUFFIXES
    return name.startswith("._") or name.lower() in _SYSTEM_FILES or (name.startswith(".") and not hidden_image)


def _why_not_image(entry: os.DirEntry[str]) -> tuple[str, bool] | None:
    """Return None for an image.

    For any other file, return the reason for skipping it, and True if it is an image in an unsupported format.
    """
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
