"""Official weights: found in the hubs' own caches, or fetched into them, or one clear line why not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import huggingface_hub
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError
from timm.models import PretrainedCfg
from tqdm import tqdm  # type: ignore[import-untyped]

from tlcli.contract.errors import HubError, TlcliError, WeightsError, first_line
from tlcli.training.runtime.progress import ProgressFactory

DEADLINE_S = 10.0
"""How long a hub may take to answer at all. Name resolution and retries can hang far longer than any socket's own timeout."""

_FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm looks for in a model's repository, in this order."""

_OR_NONE = "and give it with --weights FILE, or train from nothing with --weights none"

Answer = TypeVar("Answer")


def official_weights(name: str, progress: ProgressFactory) -> Path:
    """The file of a backbone's official weights. No network is touched if it is in the cache.

    Args:
        name: a timm model's name, with a tag of its weights or without.
        progress: told of the download.

    Raises:
        WeightsError: there are no official weights for it.
        HubError: they are not in the cache, and the hub cannot be reached, does not answer within
            `DEADLINE_S` seconds, or does not have them.
    """
    entry = timm.get_pretrained_cfg(name)
    if entry is None or not (entry.hf_hub_id or entry.url):
        architecture = name.split(".")[0]
        others = timm.list_models(f"{architecture}.*", pretrained=True)
        instead = f"; with another tag there are: {', '.join(others)}" if others else ""
        raise WeightsError(
            f"{name} has no official weights{instead}: give a file with --weights FILE, or train from nothing with --weights none"
        )
    return _from_hub(entry, progress) if entry.hf_hub_id else _from_address(entry, progress)


def _from_hub(entry: PretrainedCfg, progress: ProgressFactory) -> Path:
    repository, _, revision = str(entry.hf_hub_id).partition("@")
    where: dict[str, Any] = {"repo_id": repository, "revision": revision or None}
    for filename in _FILES:
        cached = huggingface_hub.try_to_load_from_cache(filename=filename, **where)
        if isinstance(cached, str):
            return Path(cached)
    for filename in _FILES:
        address = huggingface_hub.hf_hub_url(filename=filename, **where)
        wanted = (
            f"{filename} of {repository}, which is not in the cache {huggingface_hub.constants.HF_HUB_CACHE} (HF_HUB_CACHE sets another):"
            f" fetch {address} where there is a connection, {_OR_NONE}"
        )
        with suppress(EntryNotFoundError), _translated(wanted):
            _answered(partial(huggingface_hub.get_hf_file_metadata, address, timeout=DEADLINE_S), wanted)
            return Path(huggingface_hub.hf_hub_download(filename=filename, tqdm_class=_bar(progress, filename), **where))
    raise HubError(f"the hub has neither {' nor '.join(_FILES)} in {repository}: find the file elsewhere, {_OR_NONE}")


def _from_address(entry: PretrainedCfg, progress: ProgressFactory) -> Path:
    """Weights that are on a web page only, in torch.hub's cache, where timm looks for them too."""
    url: Any = entry.url
    address, filename = (url, Path(urlparse(url).path).name) if isinstance(url, str) else url
    cached = Path(torch.hub.get_dir()) / "checkpoints" / filename
    if not cached.is_file():
        wanted = (
            f"{filename}, which is not in the cache {cached.parent} (TORCH_HOME sets another): fetch {address} where there is a connection,"
            f" {_OR_NONE}"
        )
        with _translated(wanted), progress(f"Downloading {filename}", 1) as advance:
            _answered(lambda: urlopen(Request(address, method="HEAD"), timeout=DEADLINE_S).close(), wanted)
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(address, str(cached), progress=False)
            advance(1)
    return cached


@contextmanager
def _translated(wanted: str) -> Iterator[None]:
    try:
        yield
    except (TlcliError, EntryNotFoundError):
        raise
    except Exception as error:  # whatever library the hub's client asks through: it has changed between versions
        reason = first_line(error)
        raise HubError(f"the hub cannot be reached ({reason}) for {wanted}") from error


def _answered(ask: Callable[[], Answer], wanted: str) -> Answer:
    """`ask()`, given up after `DEADLINE_S` seconds.

    In a thread of its own, since neither name resolution nor the hub's client can be interrupted; it ends with the process.
    """
    outcome: list[Answer] = []
    problem: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(ask())
        except Exception as error:  # noqa: BLE001 - handed over to the caller's thread
            problem.append(error)

    thread = threading.Thread(target=run, daemon=True, name="ask-hub")
    thread.start()
    thread.join(DEADLINE_S)
    if problem:
        raise problem[0]
    if not outcome:
        raise HubError(f"the hub did not answer within {DEADLINE_S:g} s for {wanted}")
    return outcome[0]


def _bar(progress: ProgressFactory, filename: str) -> type[tqdm]:
    """The hub's own progress, which is a subclass of tqdm, handed on to ours."""

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *positional: Any, total: float | None = None, initial: float = 0, **options: Any) -> None:
            super().__init__(*positional, total=total, initial=initial, **{**options, "disable": True})
            self._told = ExitStack()
            self._advance = self._told.enter_context(progress(f"Downloading {filename}", int((total or 0) - initial)))

        def update(self, n: float | None = 1) -> None:
            self._advance(int(n or 0))
            super().update(n)

        def close(self) -> None:
            if hasattr(self, "_told"):
                self._told.close()
            super().close()

    return Bar
