"""An exported program whose nodes are rewritten one by one computes what it did, without operations in place and operators of the table."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional

from tlcli.exports.onnx_writer import decomposed_by_nodes_if_possible
from tlcli.exports.trace import decompose_nodes
from tlcli.exports.trace.decompose_nodes import decompose, decomposed_by_nodes

aten = torch.ops.aten
TABLE: dict[Any, object] = dict.fromkeys(
    (aten.relu_.default, aten.add_.Tensor, aten.mul_.Tensor, aten.rsub.Scalar, aten._safe_softmax.default, aten.addcmul.default)
)


class Of(nn.Module):
    """Module of a function, with a batch norm and dropout that it may use."""

    def __init__(self, function: Callable[[Of, Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.norm, self.dropout = nn.BatchNorm2d(4), nn.Dropout(0.5)
        nn.init.normal_(self.norm.running_mean)  # type: ignore[arg-type]

    def forward(self, inputs: Tensor) -> Any:
        return self.function(self, inputs.clone())


def program_of(function: Callable[[Of, Tensor], Any], training: bool = False) -> tuple[Of, ExportedProgram]:
    module = Of(function).train(training)
    return module, torch.export.export(module, (torch.randn(3, 4, 5, 6),), dynamic_shapes=({0: Dim.DYNAMIC},))


def written_later(module: Of, inputs: Tensor) -> Tensor:
    """A tensor that is used before and after it is written into, by its own name and by the result's."""
    before = inputs.sin() * 2
    hidden = before.cos()
    first = hidden + 1
    result = functional.relu(hidden, inplace=True)
    return first * hidden + result * before


def softmax(module: Of, inputs: Tensor) -> Tensor:
    """Softmax with rows of minus infinity."""
    scores = inputs.masked_fill(inputs[..., :1] > 0, float("-inf"))
    return aten._safe_softmax(scores, -1)  # type: ignore[no-any-return]


def after_dropout(module: Of, inputs: Tensor) -> Tensor:
    hidden = inputs.sin()
    functional.relu(module.dropout(hidden), inplace=True)
    return hidden


KNOWN: dict[str, Callable[[Of, Tensor], Any]] = {
    "batch norm": lambda module, inputs: module.norm(inputs),
    "conversion": lambda module, inputs: (inputs > 0).to(torch.int64),
    "memory order": lambda module, inputs: inputs.transpose(1, 3).contiguous().view(-1, 5, 4),
    "dropout": lambda module, inputs: module.dropout(inputs) * 2,
    "subtraction": lambda module, inputs: (1 - inputs, torch.rsub(inputs, 2, alpha=3)),
    "softmax": softmax,
    "enlarged": lambda module, inputs: functional.interpolate(inputs, (7, 9), mode="bilinear"),
    "in place": lambda module, inputs: functional.relu(inputs.sin(), inplace=True).mul_(3).add_(1),
    "in place on the sum": lambda module, inputs: functional.relu((inputs + 1).add_(inputs), inplace=True),
    "written later": written_later,
    "in place on what dropout returns": after_dropout,
    "view before": lambda module, inputs: functional.relu(inputs.sin().flatten(1), inplace=True),
    "all at once": lambda module, inputs: 1 - module.dropout(functional.relu(module.norm(inputs), inplace=True)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_operators_are_rewritten(name: str) -> None:
    torch.manual_seed(0)
    module, program = program_of(KNOWN[name])
    assert decompose(program, TABLE)
    targets = [node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    assert not [target for target in targets if target in TABLE or target._schema.is_mutable]
    inputs = torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(program.module()(inputs), module(inputs))


def view_used_later(module: Of, inputs: Tensor) -> Tensor:
    hidden = inputs.sin()
    view = hidden[:, 1]
    hidden.mul_(2)
    return view


def owner_used_later(module: Of, inputs: Tensor) -> Tensor:
    hidden = inputs.sin()
    hidden[:, 1].mul_(2)
    return hidden


def split(module: Of, inputs: Tensor) -> Tensor:
    hidden = inputs.sin()
    first, _ = hidden.chunk(2, dim=1)
    first.mul_(2)
    return hidden


def another_type(module: Of, inputs: Tensor) -> Tensor:
    """The sum in place is float32, and would be float64 if it were not in place."""
    return inputs.sin().add_(inputs.double())


def copied(module: Of, inputs: Tensor) -> Tensor:
    return inputs.sin().copy_(inputs[:, :1] > 0)


@pytest.mark.parametrize("function", [view_used_later, owner_used_later, split, another_type, copied])
def test_a_write_that_others_see_is_left_to_pytorch(function: Callable[[Of, Tensor], Any]) -> None:
    module, program = program_of(function)
    before = str(program.graph)
    assert not decompose(program, TABLE)
    assert str(program.graph) == before
    with decomposed_by_nodes():
        decomposed = program.run_decompositions({})
    inputs = torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(decomposed.module()(inputs), module(inputs))


def test_other_operators_and_training_are_left_to_pytorch() -> None:
    _, program = program_of(lambda module, inputs: torch.addcmul(inputs, inputs, inputs))
    assert not decompose(program, TABLE)
    for function in (lambda module, inputs: module.norm(inputs), lambda module, inputs: module.dropout(inputs)):
        _, program = program_of(function, training=True)
        assert not decompose(program, TABLE)


def test_a_program_that_the_exporter_does_not_support_is_exported_as_pytorch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def decompose_wrongly(program: ExportedProgram, table: Any) -> bool:
        for node in program.graph.nodes:
            if node.target == aten.sin.default:
                node.target = aten.special_bessel_j0.default
        return True

    module, _ = program_of(lambda module, inputs: inputs.sin())
    export = partial(torch.onnx.export, module, (torch.randn(3, 4, 5, 6),), dynamo=True, verbose=False)
    monkeypatch.setattr(decompose_nodes, "decompose", decompose_wrongly)
    program = decomposed_by_nodes_if_possible(export)
    assert program is not None
    assert [node.op_type for node in program.model.graph if node.op_type != "Identity"] == ["Sin"]
