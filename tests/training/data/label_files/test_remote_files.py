"""Label files and images at URLs, from a local web server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.training.label_files import list_text, put_images
from tests.helpers.training.web_server import Server, serving
from tlcli.contract.errors import DatasetError, HubError
from tlcli.training.data.label_file import list_label_file
from tlcli.training.data.label_files.remote_files import fetch, mirror_of
from tlcli.training.data.load import load_dataset
from tlcli.training.runtime.progress import silent
from tlcli.training.settings.config import FinetuneConfig, cache_dir

pytest.importorskip("aiohttp")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = put_images(tmp_path / "web", *(f"{label}/{n} {label}.png" for label in ("cat", "dog") for n in range(4)))
    rows = [f"{label}/{n} {label}.png,{label}" for label in ("cat", "dog") for n in range(4)]
    (folder / "labels.csv").write_text("\n".join(["path,label", *rows]))
    with serving(folder) as started:
        yield started


def test_a_remote_file_and_its_images_are_fetched_and_images_only_once(server: Server) -> None:
    dataset = load_dataset(FinetuneConfig(dataset=f"{server.address}labels.csv"))
    assert sorted(dataset.train.names + dataset.val.names) == sorted(
        f"{label}/{n} {label}.png" for label in ("cat", "dog") for n in range(4)
    )
    assert dataset.train.load(0).size == (8, 6)
    assert server.asked.count("/labels.csv") == 1
    again = load_dataset(FinetuneConfig(dataset=f"{server.address}labels.csv"))
    assert again.fingerprint == dataset.fingerprint
    assert server.asked.count("/labels.csv") == 2, "it may have changed"
    assert server.asked.count("/cat/0%20cat.png") == 1


def test_a_local_file_may_name_images_at_urls(server: Server, tmp_path: Path) -> None:
    put_images(tmp_path, "own.png")
    listing = list_text(tmp_path, f"path,label\nown.png,dog\n{server.address}cat/1%20cat.png,cat\n")
    (name,) = listing.train["cat"]
    assert Path(name).is_relative_to(cache_dir())
    assert listing.source.load(name).size == listing.source.load("own.png").size == (8, 6)


def test_images_that_are_missing_on_the_server_are_refused_with_their_lines(server: Server, tmp_path: Path) -> None:
    content = f"path,label\n{server.address}cat/1%20cat.png,cat\n{server.address}cat/9.png,cat\n"
    with pytest.raises(DatasetError, match=r"1 of 2 images cannot be found: line 3: http://.*/cat/9.png: no such file"):
        list_text(tmp_path, content)
    (tmp_path / "web" / "wrong.csv").write_text("path,label\n../secret.png,cat\n/etc/passwd,cat\n")
    with pytest.raises(DatasetError, match=r"2 of 2 images cannot be found: line 2: ../secret.png: outside of the label file's folder"):
        listing_of_url(f"{server.address}wrong.csv")


def listing_of_url(url: str) -> object:
    return list_label_file(url, {}, None, silent)


def test_a_file_that_cannot_be_fetched_is_refused_in_one_line(server: Server) -> None:
    for url, problem in (
        (f"{server.address}nosuch.csv", "nosuch.csv: no such file"),
        ("http://127.0.0.1:9/labels.csv", "http://127.0.0.1:9/labels.csv: cannot be reached: "),
    ):
        with pytest.raises(HubError, match=problem) as caught:
            listing_of_url(url)
        assert "\n" not in str(caught.value)
    with pytest.raises(DatasetError, match=r"labels: expected the URL of a label file, .csv, .tsv, .jsonl, .json or .parquet"):
        listing_of_url(f"{server.address}labels")


def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(HubError, match=r"s3://bucket/labels.csv: s3:// needs a driver that is not installed: pip install s3fs"):
        listing_of_url("s3://bucket/labels.csv")


def test_a_file_above_the_limit_is_not_kept(server: Server, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="more than 10 bytes"):
        fetch(f"{server.address}labels.csv", tmp_path / "copy.csv", 10)
    assert [path.name for path in tmp_path.iterdir()] == ["web"], "no part of it is left behind"


@pytest.mark.parametrize(
    "url",
    [
        "https://host/../../etc/passwd",
        "https://host/a/%2e%2e/b.png",
        "https://host//a\\..\\b.png",
        "https://../x.png",
        f"https://host/{'x' * 500}.png",
        "https://host/b.png?next=../../x",
    ],
)
def test_no_url_leaves_the_cache(url: str) -> None:
    place = mirror_of(url)
    assert ".." not in place.parts
    assert place.is_relative_to(cache_dir() / "remote")
    assert all(len(part) <= 255 for part in place.parts)
    assert mirror_of("https://host/b.png?1") != mirror_of("https://host/b.png?2")
