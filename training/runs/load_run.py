"""Loading of finished runs together with their best network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError

from tlcli.contract.errors import DatasetError, WeightsError
from tlcli.contract.files.display_name import printable
from tlcli.training.data.dataset import Dataset
from tlcli.training.metrics.scores import Results
from tlcli.training.models.fingerprint import require_output_of
from tlcli.training.models.network import Network, NetworkConfig, build
from tlcli.training.runs.run_folder import absolute, read_config, read_results, with_pretrained
from tlcli.training.runs.summary import require_finished
from tlcli.training.settings.config import FinetuneConfig
from tlcli.training.settings.run_file_names import CHECKPOINT, CONFIG, RESULTS, SPLIT


@dataclass(frozen=True)
class Run:
    """Finished run with its best network.

    path: run folder. config: settings as given by the user. network_config: resolved configuration of the network.
    network: best network, on the CPU, in eval mode and with `requires_grad` set to False.
    dataset_fingerprint: fingerprint of the data set; see `Dataset`.
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
        """Final metrics by name; see `Results.metrics`."""
        return self.results.metrics

    def on(self, dataset: str | None = None, data_dir: Path | None = None) -> Run:
        """Return a copy of the run with a new location of its data set. `dataset()` checks that the images are the same."""
        return replace(self, config=moved(self.config, dataset, data_dir))

    def dataset(self) -> Dataset:
        """Load the data set of the run again, with the same images in the same parts.

        Raises:
            DatasetError: images can no longer be read, or the images changed.
        """
        from tlcli.training.data.load import load_dataset

        require_dataset(self.config, self.path)
        dataset = load_dataset(self.config)
        if dataset.fingerprint != self.dataset_fingerprint:
            raise DatasetError(
                f"{self.config.dataset}: the images changed since {self.path} was trained (see its {SPLIT}):"
                " restore them, or start a new run"
            )
        return dataset


def moved(config: FinetuneConfig, dataset: str | None, data_dir: Path | None) -> FinetuneConfig:
    """Return the settings of a run with a new location of its data set. None keeps the old location."""
    locations = {"dataset": dataset, "data_dir": data_dir}
    return absolute(config.model_copy(update={name: value for name, value in locations.items() if value is not None}))


def require_dataset(config: FinetuneConfig, path: Path) -> None:
    """Check that the image folder or the label file of a run exists.

    Raises:
        DatasetError: it was moved or removed.
    """
    folder = Path(config.dataset)
    if folder.is_absolute() and not (folder.is_dir() or folder.is_file()):
        raise DatasetError(f"{path}: its data set {printable(str(folder))} no longer exists: give its new location with --dataset")


def load_run(path: str | Path) -> Run:
    """Load a finished run from its folder.

    Raises:
        NotFoundError: the folder does not exist or is not a finished run.
        SettingsError: a JSON file in the folder cannot be read by this version.
        WeightsError: the checkpoint is damaged or does not fit the network, or the logits of the network differ from those recorded
            after training.
    """
    path = Path(path)
    require_finished(path, CONFIG, RESULTS, CHECKPOINT)
    config = with_pretrained(read_config(path))
    network = build(config.network)
    try:
        network.load_state_dict(safetensors.torch.load_file(path / CHECKPOINT))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(
            f"{path / CHECKPOINT}: does not fit the network in {CONFIG}, or is damaged: {reason}: start a new run"
        ) from error
    results = read_results(path)
    assert results is not None, "the file exists"
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
