"""An exported model, opened: one way to run it for the export's check, `predict` and the server."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from contract.cores import usable_cores
from contract.description import CLASSES, FEATURES, IMAGES, LOGITS, SCORES, TARGETS, WANTED, Description
from contract.errors import DeviceError, ModelFileError, RequestError, first_line

if TYPE_CHECKING:
    import onnxruntime

FIRST_RANKED = -1
"""A negative target -r means the r-th ranked class of each picture."""


@dataclass(frozen=True)
class Answer:
    """What the graph returned for N pictures and K explained classes.

    scores, logits: float32 `[N, C]`; scores are the softmax of logits.
    classes: int64 `[N, K]`, the classes explained, or None if no map was asked for.
    maps: method to float32 `[N, K, h, w]`, not normalised.
    features: float32 `[N, c, h, w]`, if asked for.
    """

    scores: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64] | None
    maps: dict[str, npt.NDArray[np.float32]]
    features: npt.NDArray[np.float32] | None = None


def resolve_device(device: str) -> str:
    """`auto`, `cpu` or `cuda` to the device that ONNX Runtime will use: `cpu` or `cuda`.

    Raises:
        DeviceError: `cuda` was asked for and cannot be used; or an unknown name.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"unknown device {device!r}: expected auto, cpu or cuda")
    if device == "cpu":
        return "cpu"
    problem = _cuda_problem()
    if problem is None:
        return "cuda"
    if device == "cuda":
        raise DeviceError(f"--device cuda: {problem}; use --device cpu, or auto to take what there is")
    return "cpu"


@functools.cache
def _cuda_problem() -> str | None:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this ONNX Runtime has no CUDA execution provider (install onnxruntime-gpu)"
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/dxg").exists():
        return "no NVIDIA device on this machine"
    onnxruntime.preload_dlls()
    return None


class Model:
    """An ONNX file with its description, ready to run. Safe to call from several threads."""

    def __init__(self, session: onnxruntime.InferenceSession, description: Description, device: str, path: Path) -> None:
        self.session = session
        self.description = description
        self.device = device
        self.path = path
        # Switches the maps; a graph without maps has no such input.
        self._takes_wanted = any(value.name == WANTED for value in session.get_overridable_initializers())

    @classmethod
    def open(cls, path: str | Path, device: str = "auto", threads: int = 0) -> Model:
        """Load an exported model.

        Args:
            path: the ONNX file.
            device: `auto`, `cpu` or `cuda`.
            threads: ONNX Runtime's intra-op threads; 0 takes every core this process may use.

        Raises:
            ModelFileError: missing, broken, or not one of ours.
            DeviceError: see `resolve_device`; also when CUDA is there but its session cannot be made.
        """
        import onnxruntime

        chosen = resolve_device(device)
        path = Path(path)
        if not path.is_file():
            raise ModelFileError(f"{path}: no such file")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only: it warns of `targets`, whose default may be overridden, at each load
        options.intra_op_num_threads = threads or usable_cores()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = ["CUDAExecutionProvider", "CPUExecutionProvider"] if chosen == "cuda" else ["CPUExecutionProvider"]
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise ModelFileError(f"{path}: ONNX Runtime cannot load it: {first_line(error)}") from error
        if chosen == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
            if device == "cuda":
                raise DeviceError("--device cuda: ONNX Runtime could not start CUDA (driver or CUDA libraries missing): see its log above")
            chosen = "cpu"
        description = Description.from_metadata(session.get_modelmeta().custom_metadata_map, str(path))
        model = cls(session, description, chosen, path)
        model._check_graph()
        return model

    def _check_graph(self) -> None:
        outputs = {output.name: output.shape for output in self.session.get_outputs()}
        missing = {SCORES, LOGITS, CLASSES, *self.description.methods} - outputs.keys()
        if missing:
            raise ModelFileError(f"{self.path}: its graph lacks the outputs {', '.join(sorted(missing))} that its description names")
        width = outputs[SCORES][-1]
        if isinstance(width, int) and width != len(self.description.labels):
            raise ModelFileError(f"{self.path}: its graph has {width} classes, its description {len(self.description.labels)} labels")

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.description.labels)

    def check_targets(self, targets: Sequence[int]) -> None:
        """Raises: RequestError: a class id or a rank that this model does not have."""
        for target in targets:
            if not -self.num_classes <= target < self.num_classes:
                raise RequestError(
                    f"model {self.description.name!r} has no class {target}: expected 0 to {self.num_classes - 1},"
                    f" or -1 to -{self.num_classes} for the first to the last ranked"
                )

    def run(
        self,
        images: npt.NDArray[np.uint8],
        targets: npt.NDArray[np.int64] | Sequence[int] = (FIRST_RANKED,),
        methods: Sequence[str] = (),
        features: bool = False,
    ) -> Answer:
        """Run the graph; what is not asked for is not computed.

        Args:
            images: uint8 `[N, H, W, 3]`, RGB, from `Preprocessing.apply`.
            targets: classes to explain: K of them for all pictures, or `[N or 1, K]`; -r is the r-th ranked.
            methods: the maps to compute, by name.
            features: return the explained layer's activations too.

        Raises:
            RequestError: a shape, a class or a method that the model does not have.
        """
        expected = (self.description.preprocessing.height, self.description.preprocessing.width, 3)
        if images.ndim != 4 or images.shape[1:] != expected or images.dtype != np.uint8 or len(images) == 0:
            raise RequestError(
                f"model {self.description.name!r} takes uint8 [N, {expected[0]}, {expected[1]}, 3];"
                f" {images.dtype} {list(images.shape)} came"
            )
        names = [SCORES, LOGITS]
        feed: dict[str, Any] = {IMAGES: images}
        if self._takes_wanted:
            feed[WANTED] = np.array([method in methods for method in self.description.methods])
        if methods:
            chosen = np.atleast_2d(np.asarray(targets, dtype=np.int64))
            self.check_targets(chosen.ravel().tolist())
            feed[TARGETS] = chosen
            names += [CLASSES, *methods]
        if features:
            names.append(FEATURES)
        unknown = set(methods) - set(self.description.methods)
        if unknown:
            raise RequestError(
                f"model {self.description.name!r} has no map {', '.join(sorted(unknown))}; it has: {', '.join(self.description.methods)}"
            )
        values = dict(zip(names, self.session.run(names, feed), strict=True))
        return Answer(
            scores=values[SCORES],
            logits=values[LOGITS],
            classes=values.get(CLASSES),
            maps={method: values[method] for method in methods},
            features=values.get(FEATURES),
        )

    def warm_up(self) -> None:
        """Run once with and once without maps, so that the first request does not pay for first-run allocations."""
        size = self.description.preprocessing
        blank = np.zeros((1, size.height, size.width, 3), dtype=np.uint8)
        self.run(blank)
        self.run(blank, methods=self.description.methods)
