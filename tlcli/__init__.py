"""Fine-tuned image classifiers with class activation maps: train, export to ONNX, predict, serve.

    import tlcli

    model = tlcli.load("models/pets")
    answer = model.predict("cat.jpg", cam="gradcam")

Names are imported lazily on first use: `import tlcli` loads neither NumPy nor PyTorch, and `load`, `Model` and `Client` do not need
PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlcli.answer import Answer, Answers, ClassScore
    from tlcli.contract.errors import TlcliError
    from tlcli.exported_model import Model, load
    from tlcli.finetuning import Run, export, finetune
    from tlcli.remote_model import Client

__version__ = "0.1.0"

__all__ = ["Answer", "Answers", "ClassScore", "Client", "Model", "Run", "TlcliError", "export", "finetune", "load"]

_HOMES = {
    "Answer": "answer",
    "Answers": "answer",
    "ClassScore": "answer",
    "Client": "remote_model",
    "Model": "exported_model",
    "Run": "finetuning",
    "TlcliError": "contract.errors",
    "export": "finetuning",
    "finetune": "finetuning",
    "load": "exported_model",
}
"""Module that defines each public name. No module may share its name with a function here, because importing the module would replace the
function."""

if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> object:
        import importlib

        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
