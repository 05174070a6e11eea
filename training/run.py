"""A run folder read back: all that was asked, resolved and found out, and the best network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import safetensors.torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError

from contract.errors import DatasetError, NotFoundError, SettingsError, WeightsError
from training.config import FinetuneConfig
from training.network import Network, NetworkConfig, build
from training.parts import Dataset
from training.results import Results
from training.run_folder import CHECKPOINT, CONFIG, RESULTS, RUNS, SPLIT, RunConfig

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Run:
    """A finished run, read back.

    network: the best, in eval mode, on the CPU, its parameters not requiring gradients.
    """

    path: Path
    config: FinetuneConfig
    network_config: NetworkConfig
    classes: tuple[str, ...]
    network: Network
    results: Results
    dataset_fingerprint: str

    @property
    def metrics(self) -> dict[str, float]:
        """The final figures, by name, see `Results.metrics`."""
        return self.results.metrics

    def dataset(self) -> Dataset:
        """The data set as the run saw it, read anew: the same pictures in the same parts.

        Raises:
            DatasetError: its pictures cannot be read any more, or others have come.
        """
        from training.datasets import load_dataset

        dataset = load_dataset(self.config)
        if dataset.fingerprint != self.dataset_fingerprint:
            raise DatasetError(
                f"{self.config.dataset}: its pictures are not those that {self.path} was trained on (see its {SPLIT}):"
                " put them back, or fine-tune anew"
            )
        return dataset


def load_run(path: str | Path) -> Run:
    """Read a run folder.

    Raises:
        NotFoundError: no such folder, or it is no finished run.
        SettingsError: a JSON file in it that this version cannot read.
        WeightsError: its checkpoint is damaged, or does not fit its network.
    """
    path = Path(path)
    if not path.is_dir():
        raise NotFoundError(f"{path}: no such folder: give a run's folder, such as one under {RUNS}/")
    missing = [name for name in (CONFIG, RESULTS, CHECKPOINT) if not (path / name).is_file()]
    if missing:
        raise NotFoundError(f"{path}: no finished run ({', '.join(missing)} missing): run `tlcli finetune` again")
    config = _read(path / CONFIG, RunConfig)
    network = build(config.network)
    try:
        network.load_state_dict(safetensors.torch.load_file(path / CHECKPOINT))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"{path / CHECKPOINT}: does not fit the network in {CONFIG}, or is damaged: {reason}: fine-tune anew") from error
    return Run(
        path=path,
        config=config.asked,
        network_config=config.network,
        classes=config.classes,
        network=network.requires_grad_(False),
        results=_read(path / RESULTS, Results),
        dataset_fingerprint=config.dataset_fingerprint,
    )


def _read(path: Path, model: type[Model]) -> Model:
    try:
        return model.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        problem = (
            "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
            if isinstance(error, ValidationError)
            else error
        )
        raise SettingsError(f"{path}: cannot be read by this version of tlcli: {problem}: fine-tune anew") from error
