"""Export of the best network of a finished training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tlcli.contract.errors import DatasetError, ImageError, SettingsError
from tlcli.contract.images.evenly_spaced import evenly_spaced
from tlcli.contract.model.description import Plain
from tlcli.exports.exporter import export
from tlcli.exports.fold_temperature import Temperature, require_temperature
from tlcli.exports.precision.convert import SmallerNumbers
from tlcli.exports.precision.dataset_calibration import trial_on_dataset
from tlcli.exports.provenance import new_provenance
from tlcli.exports.publication import DEFAULT_CHECK_IMAGES, Exported, Say
from tlcli.exports.run_temperature import settle_temperature
from tlcli.training.data.dataset import Dataset
from tlcli.training.metrics.multi_label import MultiLabelScores
from tlcli.training.reports.model_card import write_model_card
from tlcli.training.runs.load_run import Run
from tlcli.training.runtime.progress import ProgressFactory, silent


def export_run(
    run: Run,
    *,
    name: str,
    repository: Path,
    methods: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    dynamic_size: bool = False,
    temperature: Temperature = 1.0,
    numbers: SmallerNumbers | None = None,
    plain: Plain | None = None,
    check_images: int = DEFAULT_CHECK_IMAGES,
    progress: ProgressFactory = silent,
    say: Say = lambda _: None,
) -> Exported:
    """Export the best network of a finished run, and check the file on images of the run's validation split.

    Args:
        run: run loaded with `tlcli.training.runs.load_run.load_run`.
        name: name of the model.
        repository: model repository folder.
        methods, layers, dynamic_size, plain: see `tlcli.exports.exporter.export`.
        temperature: divisor of the logits; `fit` fits it on the validation split.
        numbers: settings for reduced precision. int8 is calibrated on images of the training split; the reduced-precision file is compared
            with the float file on the validation split.
        check_images: maximum number of images for the parity check.
        progress: factory of the progress bars for long steps.
        say: callback that receives one progress line per step, and the effect of a temperature on the scores.

    Raises:
        DatasetError: an image of the run's data set can no longer be read.
        SettingsError: a temperature or reduced precision is requested for several labels per image.
        Others: see `tlcli.exports.exporter.export`.
    """
    require_temperature(temperature)
    thresholds = run.results.val.thresholds if isinstance(run.results.val, MultiLabelScores) else ()
    if thresholds and (temperature != 1 or numbers is not None):
        flag = f"--temperature {temperature}" if numbers is None else f"--precision {numbers.precision}"
        raise SettingsError(f"{flag} needs one label per image, and {run.path} has several: leave it out")
    dataset = run.dataset()
    spec = Path(dataset.spec).name if Path(dataset.spec).is_absolute() else dataset.spec  # the path on this machine is private
    images = _check_inputs(run, dataset, check_images)
    if temperature != 1:
        temperature = settle_temperature(temperature, run, dataset.val, progress, say)
    exported = export(
        run.network,
        name=name,
        labels=run.classes,
        repository=repository,
        images=images,
        source=f"{spec}, validation part",
        provenance=new_provenance(
            run.network.config,
            run.config.weights,
            run=run.path.name,
            from_run=None if run.config.from_run is None else run.config.from_run.name,
            dataset=spec,
            dataset_fingerprint=dataset.fingerprint,
            metrics=run.metrics,
        ),
        methods=methods,
        layers=layers,
        dynamic_size=dynamic_size,
        temperature=temperature,
        trial=None if numbers is None else trial_on_dataset(numbers, dataset, spec, run.network.config.preprocessing),
        plain=plain,
        thresholds=thresholds,
        say=say,
    )
    write_model_card(exported.path.parents[1], run, exported.description)
    return exported


def _check_inputs(run: Run, dataset: Dataset, count: int) -> list[npt.NDArray[np.uint8]]:
    """Return preprocessed validation images at evenly spaced indices."""
    images = []
    for index in evenly_spaced(len(dataset.val), count):
        try:
            images.append(run.network.config.preprocessing.apply(dataset.val.load(index)))
        except (ImageError, OSError) as error:
            raise DatasetError(
                f"{dataset.val.names[index]}: can no longer be read, but is needed to check the export: restore it ({error})"
            ) from error
    return images
