"""A run folder read back: all that was asked, resolved and found out, and the best network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError

from tlcli.contract.errors import DatasetError, NotFoundError, WeightsError
from tlcli.contract.files.display_name import printable
from tlcli.contract.model.repository_layout import not_a_run
from tlcli.training.data.dataset import Dataset
from tlcli.training.metrics.scores import Results
from tlcli.training.models.fingerprint import require_output_of
from tlcli.training.models.network import Network, NetworkConfig, build
from tlcli.training.runs.reproduce_command import resume_command
from tlcli.training.runs.run_folder import absolute, read_config, read_results, with_pretrained
from tlcli.training.settings.config import FinetuneConfig
from tlcli.training.settings.run_file_names import CHECKPOINT, CONFIG, RESULTS, SPLIT


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

    def on(self, dataset: str | None = None, data_dir: Path | None = None) -> Run:
        """Return the run with its data set at another place; `dataset()` compares what is there with what it was trained on."""
        return replace(self, config=moved(self.config, dataset, data_dir))

    def dataset(self) -> Dataset:
        """The data set as the run saw it, read anew: the same images in the same parts.

        Raises:
            DatasetError: its images cannot be read any more, or others have come.
        """
        from tlcli.training.data.load import load_dataset

        require_dataset(self.config, self.path)
        dataset = load_dataset(self.config)
        if dataset.fingerprint != self.dataset_fingerprint:
            raise DatasetError(
                f"{self.config.dataset}: its images are not those that {self.path} was trained on (see its {SPLIT}):"
                " put them back, or fine-tune anew"
            )
        return dataset


def moved(config: FinetuneConfig, dataset: str | None, data_dir: Path | None) -> FinetuneConfig:
    """Return a run's settings for a data set that lies elsewhere now; None for what has not moved."""
    given = {"dataset": dataset, "data_dir": data_dir}
    return absolute(config.model_copy(update={name: value for name, value in given.items() if value is not None}))


def require_dataset(config: FinetuneConfig, path: Path) -> None:
    """Check that the folder of images a run was trained on is there.

    Raises:
        DatasetError: it is gone, or has moved.
    """
    folder = Path(config.dataset)
    if folder.is_absolute() and not folder.is_dir():
        raise DatasetError(f"{path}: its data set {printable(str(folder))} is not there any more: say with --dataset where it is now")


def load_run(path: str | Path) -> Run:
    """Read a run folder.

    Raises:
        NotFoundError: no such folder, or it is no finished run.
        SettingsError: a JSON file in it that this version cannot read.
        WeightsError: its checkpoint is damaged, or does not fit its network, or the network does not return what it returned when it was
            trained.
    """
    path = Path(path)
    if problem := not_a_run(path):
        raise NotFoundError(problem)
    missing = [name for name in (CONFIG, RESULTS, CHECKPOINT) if not (path / name).is_file()]
    if missing:
        way_out = "run `tlcli finetune` again" if CONFIG in missing else f"{resume_command(path)} resumes it"
        raise NotFoundError(f"{path}: no finished run ({', '.join(missing)} missing): {way_out}")
    config = with_pretrained(read_config(path))
    network = build(config.network)
    try:
        network.load_state_dict(safetensors.torch.load_file(path / CHECKPOINT))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"{path / CHECKPOINT}: does not fit the network in {CONFIG}, or is damaged: {reason}: fine-tune anew") from error
    results = read_results(path)
    assert results is not None, "its file is there"
    if results.network_output is not None:
        require_output_of(network, results.network_output, path)
    return Run(
        path=path,
        config=config.asked,
        network_config=config.network,
        classes=config.classes,
        network=network.requires_grad_(False),
        results=results,
        dataset_fingerprint=config.dataset_fingerprint,
    )
