"""Inference with exported models, shared by the export's parity check, `predict` and the server."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tlcli.contract.errors import DeviceError, ModelFileError, RequestError, first_line
from tlcli.contract.model.cuda_options import CUDA_PROVIDER, USUAL_CUDA, Cuda
from tlcli.contract.model.description import CLASSES, IMAGES, LOGITS, SCORES, SOFTMAX, TARGETS, WANTED, Description
from tlcli.contract.model.external_weights import read_external_files
from tlcli.contract.model.fixed_batches import FixedBatches, Session
from tlcli.contract.model.int8_support import int8_sums_saturate
from tlcli.contract.model.plain_session import PlainSession
from tlcli.contract.process.cores import usable_cores

if TYPE_CHECKING:
    import onnxruntime

_logger = logging.getLogger(__name__)

FIRST_RANKED = -1
"""Target for the top-ranked class of each image; -r is the r-th ranked class."""


@dataclass(frozen=True)
class Answer:
    """Outputs of the graph for N images and K explained classes.

    scores, logits: float32 `[N, C]`; the scores are the softmax of the logits, or their sigmoid with several labels per image.
    classes: explained classes, int64 `[N, K]`; None if neither maps nor evidence were requested.
    maps: maps by name, float32 `[N, K, h, w]`, not normalised.
    evidence: requested features, float32 `[N, c, h, w]`, and gradients, float32 `[N, K, c, h, w]`, of layers, by output name.
    """

    scores: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64] | None
    maps: dict[str, npt.NDArray[np.float32]]
    evidence: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    def rows(self, start: int, stop: int, maps: bool) -> Answer:
        """Return the answer for the images from `start` to `stop`, with or without maps and always without evidence."""
        return Answer(
            scores=self.scores[start:stop],
            logits=self.logits[start:stop],
            classes=None if self.classes is None or not maps else self.classes[start:stop],
            maps={name: values[start:stop] for name, values in self.maps.items()} if maps else {},
        )


def resolve_device(device: str) -> str:
    """Resolve `auto`, `cpu` or `cuda` to the device that ONNX Runtime will use: `cpu` or `cuda`.

    Raises:
        DeviceError: `cuda` is requested but not available, or the name is unknown.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"unknown device {device!r}: expected auto, cpu or cuda")
    if device == "cpu":
        return "cpu"
    problem = _cuda_problem()
    if problem is None:
        return "cuda"
    if device == "cuda":
        raise DeviceError(f"--device cuda: {problem}; use --device cpu, or auto to fall back to the CPU")
    return "cpu"


@functools.cache
def _cuda_problem() -> str | None:
    import onnxruntime

    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        return "this ONNX Runtime has no CUDA execution provider (install onnxruntime-gpu)"
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/dxg").exists():
        return "no NVIDIA device on this machine"
    onnxruntime.preload_dlls()
    return None


class Model:
    """Exported model with its description, ready for inference. Instances can be used from several threads."""

    def __init__(
        self, session: onnxruntime.InferenceSession, description: Description, device: str, path: Path, runs: Session | None = None
    ) -> None:
        """Wrap an open session. Use `open` to load a model from a file.

        Args:
            session: ONNX Runtime's session.
            description: description of the model.
            device: `cpu` or `cuda`.
            path: path of the ONNX file.
            runs: object that runs the graph instead of `session`, such as `FixedBatches`; None uses `session`.
        """
        self.session = session
        self._runs: Session = session if runs is None else runs
        self.description = description
        self.device = device
        self.path = path
        self._evidence = {*description.evidence}

    @classmethod
    def open(
        cls, path: str | Path, device: str = "auto", threads: int = 0, cuda: Cuda = USUAL_CUDA, batch_sizes: Sequence[int] = ()
    ) -> Model:
        """Load an exported model.

        Args:
            path: path of the ONNX file.
            device: `auto`, `cpu` or `cuda`.
            threads: number of ONNX Runtime's intra-op threads; 0 uses one per core that this process may use.
            cuda: options of the CUDA execution provider.
            batch_sizes: fixed batch sizes to which batches are padded, with one session per size; see `FixedBatches`. Empty runs batches
                of any size.

        Raises:
            ModelFileError: the file is missing, damaged, or was not exported by tlcli.
            DeviceError: see `resolve_device`; also raised if `cuda` is requested but ONNX Runtime cannot start CUDA.
        """
        import onnxruntime

        chosen = resolve_device(device)
        path = Path(path)
        if not path.is_file():
            raise ModelFileError(f"{path}: no such file")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised anyway, and each load would warn that `targets` has a default
        options.intra_op_num_threads = threads or usable_cores()
        # Let threads spin while they wait for each other, which is faster, but not between runs, when others may need the cores.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if int8_sums_saturate():
            options.add_session_config_entry("session.x64quantprecision", "1")
        providers = [(CUDA_PROVIDER, cuda.options()), "CPUExecutionProvider"] if chosen == "cuda" else ["CPUExecutionProvider"]
        weights = read_external_files(path)
        if weights:
            options.add_external_initializers_from_files_in_memory(list(weights), list(weights.values()), [*map(len, weights.values())])
        try:
            session, *others = (onnxruntime.InferenceSession(str(path), options, providers=providers) for _ in batch_sizes or (0,))
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise ModelFileError(f"{path}: ONNX Runtime cannot load it: {first_line(error)}: export it again") from error
        if chosen == "cuda" and CUDA_PROVIDER not in session.get_providers():
            problem = "ONNX Runtime could not start CUDA (driver or CUDA libraries missing, such as those of `pip install 'tlcli[gpu]'`)"
            if device == "cuda":
                raise DeviceError(f"--device cuda: {problem}: see ONNX Runtime's log above")
            _logger.warning("%s runs on the CPU although there is a GPU: %s; use --device cpu if this is intended", path, problem)
            chosen = "cpu"
        if chosen == "cuda" and cuda.channels_last:
            # cuDNN logs a line for each fused operator without a channels-last kernel, which it then splits without harm.
            onnxruntime.set_default_logger_severity(4)
        description = Description.from_metadata(session.get_modelmeta().custom_metadata_map, str(path))
        plain = description.plain
        sessions: list[Session] = [session if plain is None else PlainSession(session, plain) for session in (session, *others)]
        runs = FixedBatches(dict(zip(batch_sizes, sessions, strict=True))) if batch_sizes else sessions[0]
        model = cls(session, description, chosen, path, runs)
        model._check_graph()
        return model

    def _check_graph(self) -> None:
        outputs = {output.name: output.shape for output in self.session.get_outputs()}
        missing = {SCORES, LOGITS, CLASSES, *self.description.graph_maps, *self._evidence} - outputs.keys()
        if missing:
            raise ModelFileError(
                f"{self.path}: its graph lacks the outputs {', '.join(sorted(missing))} that its description names: export it again"
            )
        width = outputs[SCORES][-1]
        if isinstance(width, int) and width != len(self.description.labels):
            raise ModelFileError(
                f"{self.path}: its graph has {width} classes, but its description {len(self.description.labels)} labels: export it again"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return len(self.description.labels)

    def check_targets(self, targets: Sequence[int]) -> None:
        """Check that all class ids and ranks are in range for this model.

        Raises:
            RequestError: the model has no class with an id or rank.
        """
        plain = self.description.plain
        if plain is not None and plain.classes == "top" and set(targets) - {FIRST_RANKED}:
            raise RequestError(
                f"model {self.description.name!r} explains only the top-ranked class (it was exported with --classes top): leave out the"
                " classes, or export it with --classes input"
            )
        for target in targets:
            if not -self.num_classes <= target < self.num_classes:
                raise RequestError(
                    f"model {self.description.name!r} has no class {target}: expected 0 to {self.num_classes - 1},"
                    f" or -1 to -{self.num_classes} for the first to the last ranked"
                )

    def check_softmax(self, softmax: bool) -> None:
        """Check that the model can explain probabilities if `softmax` is True.

        Raises:
            RequestError: the model has a plain graph, which explains logits only.
        """
        if softmax and self.description.plain is not None:
            raise RequestError(
                f"model {self.description.name!r} explains logits only (it was exported with --plain): leave out softmax, or export it"
                " without --plain"
            )

    def run(
        self,
        images: npt.NDArray[np.uint8],
        targets: npt.NDArray[np.int64] | Sequence[int] = (FIRST_RANKED,),
        methods: Sequence[str] = (),
        evidence: Sequence[str] = (),
        softmax: bool = False,
        shrink: bool = False,
    ) -> Answer:
        """Run the graph. Outputs that you do not request are not computed, except by a plain graph.

        Args:
            images: RGB images from `Preprocessing.apply`, uint8 `[N, H, W, 3]`; any height and width if the model has a dynamic size.
            targets: classes to explain: K classes for all images, or `[N or 1, K]`; -r is the r-th ranked class.
            methods: names of the maps to compute, which the graph must contain.
            evidence: names of the layer outputs (features and gradients) to return.
            softmax: explain the class's softmax probability instead of its logit.
            shrink: after the run, return to the system the CPU memory that ONNX Runtime would keep for the next run. Images of a
                different size than the model's always have this effect.

        Raises:
            RequestError: the images or targets have the wrong shape, or the model does not have a class, map or layer output.
        """
        self._check_images(images)
        self._check_names(methods, evidence)
        names = [SCORES, LOGITS]
        feed: dict[str, Any] = {IMAGES: images}
        if self.description.switches:
            feed[WANTED] = np.array([[name in methods or name in evidence for name in self.description.switches]])
        if methods or evidence:
            chosen = np.atleast_2d(np.asarray(targets, dtype=np.int64))
            if chosen.ndim != 2 or chosen.shape[0] not in (1, len(images)):
                raise RequestError(f"targets of shape {list(chosen.shape)} for {len(images)} images: expected [{len(images)} or 1, K]")
            self.check_targets(chosen.ravel().tolist())
            self.check_softmax(softmax)
            feed[TARGETS] = chosen
            if softmax:
                feed[SOFTMAX] = np.array([[True]])
            names += [CLASSES, *methods, *evidence]
        values = dict(zip(names, self._runs.run(names, feed, self._run_options(images, shrink)), strict=True))
        return Answer(
            scores=values[SCORES],
            logits=values[LOGITS],
            classes=values.get(CLASSES),
            maps={method: values[method] for method in methods},
            evidence={name: values[name] for name in evidence},
        )

    def _run_options(self, images: npt.NDArray[np.uint8], shrink: bool) -> onnxruntime.RunOptions | None:
        size = self.description.preprocessing
        if self.device != "cpu" or not (shrink or images.shape[1:3] != (size.height, size.width)):
            return None
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        return options

    def _check_images(self, images: npt.NDArray[np.uint8]) -> None:
        size = self.description.preprocessing
        fits = images.ndim == 4 and images.shape[3] == 3 and images.dtype == np.uint8 and images.size > 0
        if not fits or (images.shape[1:3] != (size.height, size.width) and not self.description.dynamic_size):
            expected = "H, W" if self.description.dynamic_size else f"{size.height}, {size.width}"
            raise RequestError(f"model {self.description.name!r} takes uint8 [N, {expected}, 3], not {images.dtype} {list(images.shape)}")

    def _check_names(self, methods: Sequence[str], evidence: Sequence[str]) -> None:
        if unknown := set(methods) - set(self.description.graph_maps):
            raise RequestError(
                f"the graph of model {self.description.name!r} has no map {', '.join(sorted(unknown))};"
                f" it has: {', '.join(self.description.graph_maps)}"
            )
        if unknown := set(evidence) - self._evidence:
            raise RequestError(f"the graph of model {self.description.name!r} has no output {', '.join(sorted(unknown))}")
