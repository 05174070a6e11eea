"""Folders of images, read by one rule: which files are images, which folders are passed over, and which links are followed.

A file is an image by its suffix; with any other suffix, or none, by its first bytes. Hidden files and folders, and those that an operating
system or a network drive keeps, are passed over. A link to a folder is followed once, and never to a folder that is read already or that
holds the one being read. Nothing but regular files is opened: a FIFO would wait for a writer.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tlcli.contract.errors import NotFoundError
from tlcli.contract.files.display_name import printable
from tlcli.contract.images import heif

HEIF_READ = heif.register()
"""True where HEIC images can be decoded."""

_HEIF_SUFFIXES = frozenset({".heic", ".heif", ".heics", ".heifs", ".hif"})

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif", ".avifs"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".mpo"}
    | (_HEIF_SUFFIXES if HEIF_READ else set())
)
"""Suffixes of images that `tlcli.contract.images.decoding` decodes."""

UNREAD_SUFFIXES = frozenset(
    {".svg", ".psd", ".psb", ".tga", ".ico", ".icns", ".dds", ".pcx", ".sgi", ".qoi", ".jxl", ".jxr", ".eps", ".exr", ".hdr", ".xcf"}
    | {".dng", ".cr2", ".cr3", ".crw", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".dcm", ".dicom", ".nii", ".fits", ".wmf", ".emf"}
    | (set() if HEIF_READ else _HEIF_SUFFIXES)
)
"""Suffixes of images that nothing here decodes."""

SYSTEM_FOLDERS = frozenset(
    {"__macosx", "@eadir", "$recycle.bin", "recycler", "lost+found", "system volume information", "#recycle", "#snapshot", "@recycle"}
    | {"@recently-snapshot", "@tmp", "@sharebin", "__pycache__"}
)
"""Folders that an operating system, a network drive or Python keeps; in lower case."""

_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store", "icon\r", "@syno_dir"})

_Identity = tuple[int, int]
"""Device and inode."""

_SNIFFED = 64

_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|II[*+]\0|MM\0[*+]|....ftypavi[fs]|....ftyp(?:mif1|msf1).{0,48}avi[fs]"
    rb"|BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0|P[1-6]\s+(?:#[^\n]*\n\s*)*\d+\s|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    re.DOTALL,
)
"""First bytes of the formats of `SUFFIXES`. Decoding decides about loose matches."""


@dataclass(frozen=True)
class Skipped:
    """A file or folder that was not read. name: below the folder that was searched. reason: one line. is_folder: it is a folder.

    unread_image: an image of a format that nothing here decodes.
    """

    name: str
    reason: str
    is_folder: bool = False
    unread_image: bool = False


@dataclass(frozen=True)
class Entries:
    """One folder. folders, images: their names, sorted; links to folders among the folders. skipped: the rest."""

    folders: tuple[str, ...]
    links: frozenset[str]
    images: tuple[str, ...]
    skipped: tuple[Skipped, ...]


class Scanner:
    """Reader of the folders below `root`. Names are paths below it, with `/`; `""` is the root itself."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.skipped: dict[str, Skipped] = {}
        self._entries: dict[str, Entries] = {}
        self._above: frozenset[_Identity] | None = None

    def look(self, folder: str) -> Entries:
        """Return what a folder holds, by name; it is read once.

        Raises:
            NotFoundError: it cannot be listed.
        """
        if folder not in self._entries:
            self._entries[folder] = self._list(folder)
        return self._entries[folder]

    def skip(self, name: str, reason: str, is_folder: bool = False) -> None:
        """Note that a file or folder is left out."""
        self.skipped.setdefault(name, Skipped(name, reason, is_folder))

    def note(self, folder: str, images: str | None = None) -> None:
        """Note what a folder that is read holds beside what is read. images: why its images are left out, if they are."""
        entries = self.look(folder)
        self.skipped.update({one.name: one for one in entries.skipped})
        if images is not None:
            for name in entries.images:
                self.skip(join(folder, name), images)

    def gather(self, *groups: Sequence[str]) -> dict[str, list[str]]:
        """Return the images below each folder of each group, sorted by name, and note what is left out.

        Within a group a folder is read once, and folders themselves before the links in them: a link never takes the images of the folder
        that it leads to. A link in one group does not lead into another.

        Args:
            groups: folders that share no image: the classes of one part.

        Raises:
            NotFoundError: a folder that cannot be listed.
        """
        found: dict[str, list[str]] = {folder: [] for group in groups for folder in group}
        read: list[set[_Identity]] = [set() for _ in groups]
        links: list[tuple[int, str, str]] = []
        for number, group in enumerate(groups):
            for folder in group:
                if self._is_link(folder):
                    links.append((number, folder, folder))
                else:
                    links += [(number, folder, link) for link in self._walk(folder, found[folder], read[number], set())]
        others = [set[_Identity]().union(*read[:number], *read[number + 1 :]) for number in range(len(groups))]
        for number, owner, link in links:  # grows while it is walked
            elsewhere = set[_Identity]() if link == owner else others[number]
            links += [(number, owner, further) for further in self._walk(link, found[owner], read[number], elsewhere)]
        return {folder: sorted(names) for folder, names in found.items()}

    def _walk(self, top: str, found: list[str], read: set[_Identity], elsewhere: set[_Identity]) -> list[str]:
        """Add the images below `top` to `found` and its folders to `read`. Return the links to folders that were met."""
        links: list[str] = []
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            identity = _identity(self.root / folder)
            if identity is not None and (identity in read or identity in elsewhere):
                self.skip(folder, "leads to a folder that is read already", is_folder=True)
                continue
            if identity is not None:
                read.add(identity)
            entries = self.look(folder)
            self.note(folder)
            found += [join(folder, name) for name in entries.images]
            for name in entries.folders:
                (links if name in entries.links else waiting).append(join(folder, name))
        return links

    def holds_images(self, folder: str) -> bool:
        """Check for an image in a folder or below it, without following links further down."""
        waiting = [folder]
        while waiting:
            place = waiting.pop()
            entries = self.look(place)
            if entries.images:
                return True
            waiting += [join(place, name) for name in entries.folders if name not in entries.links or place == folder]
        return False

    def below(self, folder: str) -> list[Skipped]:
        """Return what is not read in a folder and below it, links aside."""
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
                f"{printable(str(place))}: cannot be listed: {error.strerror or error}: make it readable, or take it out"
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
            self._above = frozenset(identity for one in (root, *root.parents) if (identity := _identity(one)) is not None)
        return "leads to a folder that holds it" if _identity(Path(entry.path)) in self._above else None


def find(paths: Iterable[str | Path], skipped: list[Skipped] | None = None) -> list[Path]:
    """Return the image files that `paths` name: files as they are, folders searched, sorted within each.

    Args:
        paths: files and folders.
        skipped: takes what is left out of the folders, its name with the folder's.

    Raises:
        NotFoundError: a path that does not exist or is neither file nor folder, a folder that cannot be listed, or one without an image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            scanner = Scanner(path)
            inside = sorted(path / name for name in scanner.gather([""])[""])
            left = [Skipped(str(path / one.name), one.reason, one.is_folder, one.unread_image) for one in scanner.skipped.values()]
            if not inside:
                first = f"; left out: {printable(left[0].name)}: {left[0].reason}" if left else ""
                raise NotFoundError(f"{printable(str(path))}: no image in this folder{first}")
            found.extend(inside)
            if skipped is not None:
                skipped.extend(left)
        elif path.exists() or path.is_symlink():
            found.append(path)
        else:
            raise NotFoundError(f"{printable(str(path))}: no such file or folder")
    return found


def describe(skipped: Sequence[Skipped], shown: int = 3) -> list[str]:
    """Return a line for each folder that is left out, and one for all files that are left out for the same reason."""
    lines = [f"left out: folder {printable(one.name)}: {one.reason}" for one in skipped if one.is_folder]
    by_reason: dict[str, list[str]] = {}
    for one in skipped:
        if not one.is_folder:
            by_reason.setdefault(one.reason, []).append(printable(one.name))
    for reason, names in by_reason.items():
        more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
        count = "" if len(names) == 1 else f"{len(names):,} files: "
        lines.append(f"left out: {count}{', '.join(names[:shown])}{more}: {reason}")
    return lines


def is_image(head: bytes) -> bool:
    """Check the first bytes of a file, 64 where it has as many, for a format that is decoded."""
    return _MAGIC.match(head) is not None or (HEIF_READ and heif.is_heif(head))


def join(folder: str, name: str) -> str:
    """Return the path of a name in a folder, `""` being the root."""
    return f"{folder}/{name}" if folder else name


def _identity(path: Path) -> _Identity | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _kind(entry: os.DirEntry[str]) -> tuple[int, str | None]:
    """Return the mode of what an entry leads to, and why it is neither file nor folder, if it is neither."""
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        if entry.is_symlink():
            return 0, "a link that leads nowhere"
        return 0, f"cannot be read: {error.strerror or error}"
    return mode, None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else kind_of(mode)


def kind_of(mode: int) -> str:
    """Name what is no regular file, by its mode."""
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
    """True for what systems put into every folder: nobody misses it, so nobody is told."""
    hidden_image = name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES | UNREAD_SUFFIXES
    return name.startswith("._") or name.lower() in _SYSTEM_FILES or (name.startswith(".") and not hidden_image)


def _why_not_image(entry: os.DirEntry[str]) -> tuple[str, bool] | None:
    """Return why a file is no image, and whether it is one of a format that is not decoded; None for an image."""
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
    return "empty" if not head else "no image, by its name and its content", False
