"""Official weights, read from the caches of the Hugging Face Hub and torch.hub or downloaded to them."""

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
"""Time limit in seconds for the first response of a hub. Name resolution and retries can take far longer than any socket timeout."""

_FILES = ("model.safetensors", "pytorch_model.bin")
"""Weight files that timm looks for in a model repository, in order."""

_ALTERNATIVES = "and use it with --weights FILE, or train from random weights with --weights none"

Result = TypeVar("Result")


def official_weights(name: str, progress: ProgressFactory) -> Path:
    """Return the path of a backbone's official weights. The file is downloaded if it is not in the cache.

    Args:
        name: name of a timm model, with or without a weights tag.
        progress: progress bar for the download.

    Raises:
        WeightsError: the backbone has no official weights.
        HubError: the file is not in the cache, and the hub is unreachable, does not respond within `DEADLINE_S` seconds, or does not
            have the file.
    """
    entry = timm.get_pretrained_cfg(name)
    if entry is None or not (entry.hf_hub_id or entry.url):
        architecture = name.split(".")[0]
        others = timm.list_models(f"{architecture}.*", pretrained=True)
        available = f"; available with another tag: {', '.join(others)}" if others else ""
        raise WeightsError(
            f"{name} has no official weights{available}: use --weights FILE, or train from random weights with --weights none"
        )
    return _from_hub(entry, progress) if entry.hf_hub_id else _from_address(entry, progress)


def _from_hub(entry: PretrainedCfg, progress: ProgressFactory) -> Path:
    repository, _, revision = str(entry.hf_hub_id).partition("@")
    location: dict[str, Any] = {"repo_id": repository, "revision": revision or None}
    for filename in _FILES:
        cached = huggingface_hub.try_to_load_from_cache(filename=filename, **location)
        if isinstance(cached, str):
            return Path(cached)
    for filename in _FILES:
        address = huggingface_hub.hf_hub_url(filename=filename, **location)
        missing = (
            f"{filename} of {repository} is not in the cache {huggingface_hub.constants.HF_HUB_CACHE} (set by HF_HUB_CACHE):"
            f" download {address} on a machine with internet access, {_ALTERNATIVES}"
        )
        with suppress(EntryNotFoundError), _hub_errors(missing):
            _with_deadline(partial(huggingface_hub.get_hf_file_metadata, address, timeout=DEADLINE_S), missing)
            return Path(huggingface_hub.hf_hub_download(filename=filename, tqdm_class=_bar(progress, filename), **location))
    raise HubError(f"the hub has neither {' nor '.join(_FILES)} in {repository}: find the file elsewhere, {_ALTERNATIVES}")


def _from_address(entry: PretrainedCfg, progress: ProgressFactory) -> Path:
    """Return weights published at a plain URL. They are downloaded to the torch.hub cache, where timm also looks for them."""
    url: Any = entry.url
    address, filename = (url, Path(urlparse(url).path).name) if isinstance(url, str) else url
    cached = Path(torch.hub.get_dir()) / "checkpoints" / filename
    if not cached.is_file():
        missing = (
            f"{filename} is not in the cache {cached.parent} (set by TORCH_HOME): download {address} on a machine with internet access,"
            f" {_ALTERNATIVES}"
        )
        with _hub_errors(missing), progress(f"Downloading {filename}", 1) as advance:
            _with_deadline(lambda: urlopen(Request(address, method="HEAD"), timeout=DEADLINE_S).close(), missing)
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(address, str(cached), progress=False)
            advance(1)
    return cached


@contextmanager
def _hub_errors(missing: str) -> Iterator[None]:
    try:
        yield
    except (TlcliError, EntryNotFoundError):
        raise
    except Exception as error:  # the hub client's HTTP library, and thus its exceptions, differ between versions
        raise HubError(f"the hub cannot be reached ({first_line(error)}); {missing}") from error


def _with_deadline(request: Callable[[], Result], missing: str) -> Result:
    """Call `request` and return its result, with a time limit of `DEADLINE_S` seconds.

    The call runs in a daemon thread, because neither name resolution nor the hub client can be interrupted. The thread ends with the
    process.

    Raises:
        HubError: the call did not return in time.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(request())
        except Exception as error:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="hub-request")
    thread.start()
    thread.join(DEADLINE_S)
    if errors:
        raise errors[0]
    if not results:
        raise HubError(f"the hub did not respond within {DEADLINE_S:g} s; {missing}")
    return results[0]


def _bar(progress: ProgressFactory, filename: str) -> type[tqdm]:
    """Return a tqdm subclass that forwards updates to `progress`. The hub client requires a tqdm class."""

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *positional: Any, total: float | None = None, initial: float = 0, **options: Any) -> None:
            super().__init__(*positional, total=total, initial=initial, **{**options, "disable": True})
            self._stack = ExitStack()
            self._advance = self._stack.enter_context(progress(f"Downloading {filename}", int((total or 0) - initial)))

        def update(self, n: float | None = 1) -> None:
            self._advance(int(n or 0))
            super().update(n)

        def close(self) -> None:
            if hasattr(self, "_stack"):
                self._stack.close()
            super().close()

    return Bar
