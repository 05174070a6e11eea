"""Rules for finding images in folders, shared by training, `predict` and every other command that takes folders."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tlcli.contract.images.decoding
from tlcli.contract.errors import ImageError, NotFoundError
from tlcli.contract.files.display_name import csv_cell, from_csv_cell, label, printable
from tlcli.contract.images import find_images, heif
from tlcli.contract.images.find_images import Scanner, Skipped, describe, find, is_image


def encoded(image_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(buffer, image_format)
    return buffer.getvalue()


def put(folder: Path, *places: str) -> Path:
    for place in places:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).touch()
    return folder


def names(folder: Path, found: list[Path]) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in found]


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000"])
def test_images_are_known_by_their_content_where_the_suffix_says_nothing(tmp_path: Path, image_format: str) -> None:
    for name in ("image", "image.dat", "image.jpg"):
        (tmp_path / name).write_bytes(encoded(image_format))
    (tmp_path / "notes").write_text("P4 is a format; BM is not.")
    (tmp_path / "bm").write_text("BM, said the owl, and no more than that was heard of it")
    skipped: list[Skipped] = []
    assert names(tmp_path, find([tmp_path], skipped)) == ["image", "image.dat", "image.jpg"]
    assert sorted((Path(one.name).name, one.reason) for one in skipped) == [
        ("bm", "not an image, by its name and its content"),
        ("notes", "not an image, by its name and its content"),
    ]
    assert tlcli.contract.images.decoding.read(tmp_path / "image.dat").size == (8, 9)


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".Jpeg", ".jp2", ".ppm", ".PGM", ".pbm", ".dib", ".j2k", ".apng"])
def test_suffixes_count_in_any_case_and_nothing_is_opened(tmp_path: Path, suffix: str) -> None:
    assert names(tmp_path, find([put(tmp_path, f"a{suffix}")])) == [f"a{suffix}"]


def test_what_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b.svg", "c.txt", ".DS_Store", "Thumbs.db", "._a.jpg", ".hidden.png", ".gitkeep")
    (tmp_path / "c.txt").write_text("text")
    skipped: list[Skipped] = []
    assert names(tmp_path, find([tmp_path], skipped)) == ["a.jpg"]
    assert {Path(one.name).name: one.unread_image for one in skipped} == {".hidden.png": False, "b.svg": True, "c.txt": False}
    assert describe(skipped) == [
        f"left out: {tmp_path}/.hidden.png: hidden",
        f"left out: {tmp_path}/b.svg: an image of a format that is not read (.svg): convert it to PNG or JPEG",
        f"left out: {tmp_path}/c.txt: not an image, by its name and its content",
    ]


def test_many_files_are_counted_and_three_of_them_named() -> None:
    skipped = [Skipped(f"a/{number}.txt", "no image") for number in range(5)] + [Skipped("b", "hidden", is_folder=True)]
    assert describe(skipped) == ["left out: folder b: hidden", "left out: 5 files: a/0.txt, a/1.txt, a/2.txt and 2 more: no image"]


@pytest.mark.parametrize("name", ["@eaDir", "$RECYCLE.BIN", "lost+found", "__MACOSX", ".ipynb_checkpoints", "System Volume Information"])
def test_folders_of_the_system_are_passed_over_and_named(tmp_path: Path, name: str) -> None:
    put(tmp_path, "a/1.jpg", f"a/{name}/2.jpg", f"{name}/3.jpg")
    skipped: list[Skipped] = []
    assert names(tmp_path, find([tmp_path], skipped)) == ["a/1.jpg"]
    assert sorted(Path(one.name).relative_to(tmp_path).as_posix() for one in skipped) == sorted([name, f"a/{name}"])
    assert all(one.is_folder for one in skipped)


def test_a_link_to_a_folder_above_is_not_followed(tmp_path: Path) -> None:
    put(tmp_path, "data/a/1.jpg", "data/b/1.jpg", "other/1.jpg")
    (tmp_path / "data/a/up").symlink_to("..")
    (tmp_path / "data/a/self").symlink_to(".")
    (tmp_path / "data/b/further").symlink_to(tmp_path)
    skipped: list[Skipped] = []
    assert names(tmp_path, find([tmp_path / "data"], skipped)) == ["data/a/1.jpg", "data/b/1.jpg"]
    assert {Path(one.name).name: one.reason for one in skipped} == {
        "up": "leads to a folder that holds it",
        "self": "leads to a folder that was already read",
        "further": "leads to a folder that holds it",
    }


def test_a_link_to_another_folder_is_followed_once_and_takes_nothing_from_it(tmp_path: Path) -> None:
    put(tmp_path, "data/b/1.jpg", "outside/deep/2.jpg")
    (tmp_path / "data/a").mkdir()
    (tmp_path / "data/a/beside").symlink_to(tmp_path / "data/b")
    (tmp_path / "data/a/out").symlink_to(tmp_path / "outside")
    (tmp_path / "data/b/out").symlink_to(tmp_path / "outside")
    (tmp_path / "outside/deep/round").symlink_to(tmp_path / "outside")
    scanner = Scanner(tmp_path / "data")
    assert scanner.gather(["a", "b"]) == {"a": ["a/out/deep/2.jpg"], "b": ["b/1.jpg"]}
    assert {name: one.reason for name, one in scanner.skipped.items()} == dict.fromkeys(
        ["a/beside", "b/out", "a/out/deep/round"], "leads to a folder that was already read"
    )


def test_a_link_in_one_part_takes_nothing_from_another(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.jpg", "test/a/2.jpg")
    (tmp_path / "train/a/more").symlink_to(tmp_path / "test")
    scanner = Scanner(tmp_path)
    assert scanner.gather(["train/a"], ["test/a"]) == {"train/a": ["train/a/1.jpg"], "test/a": ["test/a/2.jpg"]}
    assert list(scanner.skipped) == ["train/a/more/a"]


def test_what_is_no_file_is_named_and_never_opened(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg")
    os.mkfifo(tmp_path / "a/pipe.png")
    os.mkfifo(tmp_path / "a/pipe")
    (tmp_path / "a/gone.png").symlink_to("nowhere")
    (tmp_path / "a/device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "a/socket.png"))
    skipped: list[Skipped] = []
    assert names(tmp_path, find([tmp_path], skipped)) == ["a/1.jpg"]
    assert {Path(one.name).name: one.reason for one in skipped} == {
        "pipe.png": "a FIFO (named pipe)",
        "pipe": "a FIFO (named pipe)",
        "gone.png": "a link that leads nowhere",
        "device.png": "a device",
        "socket.png": "a socket",
    }
    for name, called in (("pipe.png", "a FIFO"), ("device.png", "a device")):
        with pytest.raises(ImageError, match=f"{name}: {called}.*: expected an image file"):
            tlcli.contract.images.decoding.read(tmp_path / "a" / name)


def test_links_to_files_are_followed(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/blob")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/1.jpg").symlink_to(tmp_path / "elsewhere/blob")
    assert names(tmp_path, find([tmp_path / "data"])) == ["data/1.jpg"]


def test_a_folder_that_cannot_be_listed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a/1.jpg", "b/1.jpg")
    listed = os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(NotFoundError) as refusal:
        find([tmp_path])
    assert str(refusal.value) == f"{tmp_path}/b: cannot be listed: Permission denied: make it readable, or remove it"


def test_large_files_are_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(1 << 40)  # sparse: it takes no disk space
    with pytest.raises(ImageError, match=r"large\.png: the image has 1,099,511,627,776 bytes: expected at most 33,554,432"):
        tlcli.contract.images.decoding.read(tmp_path / "large.png")


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def test_heic_names_the_package_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_images, "HEIF_READ", False)
    monkeypatch.setattr(find_images, "SUFFIXES", find_images.SUFFIXES - {".heic"})
    monkeypatch.setattr(find_images, "UNREAD_SUFFIXES", find_images.UNREAD_SUFFIXES | {".heic"})
    for name in ("a.heic", "b.HEIC", "photo"):
        (tmp_path / name).write_bytes(HEIC)
    put(tmp_path, "c.jpg")
    skipped: list[Skipped] = []
    assert names(tmp_path, find([tmp_path], skipped)) == ["c.jpg"]
    assert [(one.reason, one.unread_image) for one in skipped] == [
        ("a HEIC image, which needs the package pillow-heif: pip install 'tlcli[heif]', or convert it to JPEG", True)
    ] * 3
    monkeypatch.setattr(
        tlcli.contract.images.decoding, "FORMATS", tuple(name for name in tlcli.contract.images.decoding.FORMATS if name != "HEIF")
    )
    with pytest.raises(ImageError, match="HEIC image, which needs the package pillow-heif"):
        tlcli.contract.images.decoding.decode(HEIC)


def test_heic_is_read_where_the_package_is_installed(tmp_path: Path) -> None:
    package = pytest.importorskip("pillow_heif")
    assert heif.register()
    assert find_images.HEIF_READ
    seen = Image.new("RGB", (64, 48), (200, 40, 90))
    seen.paste((10, 200, 30), (0, 0, 20, 48))
    package.from_pillow(seen).save(tmp_path / "a.heic", quality=95)
    (tmp_path / "b").write_bytes((tmp_path / "a.heic").read_bytes())
    assert names(tmp_path, find([tmp_path])) == ["a.heic", "b"]
    decoded = np.asarray(tlcli.contract.images.decoding.read(tmp_path / "b")).astype(int)
    assert decoded.shape == (48, 64, 3)
    assert np.abs(decoded - np.asarray(seen)).mean() < 4


def test_avif_is_not_taken_for_heif() -> None:
    assert is_image(encoded("AVIF")[:64])
    assert not heif.is_heif(encoded("AVIF")[:64])
    assert heif.is_heif(HEIC)


def test_names_are_one_line_of_valid_unicode() -> None:
    assert printable("plain é 猫 'x' \"y\"") == "plain é 猫 'x' \"y\""
    assert printable(os.fsdecode(b"se\xf1al\n\x1b[31m.png")) == r"se\xf1al\n\x1b[31m.png"
    assert label("cafe\u0301") == label("caf\u00e9") == "caf\u00e9"
    assert label(os.fsdecode(b"caf\xe9")) == r"caf\xe9"


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-1", "@sum", "cat/1.jpg", "'=x", "'quoted'"])
def test_a_spreadsheet_runs_nothing(name: str) -> None:
    assert not csv_cell(name).startswith(("=", "+", "-", "@"))
    if not name.startswith("'="):
        assert from_csv_cell(csv_cell(name)) == name
