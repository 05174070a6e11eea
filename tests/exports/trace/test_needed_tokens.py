"""A transformer whose scores depend on one token computes one token behind its last attention, with the same results."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from tests.exports.test_attention_maps import SIZE, plain
from tlcli.exports.trace.explainer import Explainer
from tlcli.exports.trace.needed_tokens import keep_needed_tokens
from tlcli.exports.trace.simplify_graph import simplify

aten = torch.ops.aten
TOKENS, CHANNELS = 7, 6


class Block(nn.Module):
    """Block of a transformer with one head, and a selection of its tokens."""

    def __init__(self, selection: slice | int | tuple[int, int], mixes: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(CHANNELS)
        self.weights = nn.ParameterList(torch.randn(CHANNELS, CHANNELS) for _ in range(5))
        self.selection, self.mixes = selection, mixes
        self.requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm(tokens)
        query, key, value = ((normed.reshape(-1, CHANNELS) @ weight).reshape(tokens.shape) for weight in self.weights[:3])
        tokens = tokens + (query @ key.transpose(1, 2)).softmax(-1) @ value
        if self.mixes:
            tokens = tokens - tokens.mean(1, keepdim=True)
        hidden = torch.nn.functional.gelu(self.norm(tokens).reshape(-1, CHANNELS) @ self.weights[3])
        tokens = tokens + (hidden @ self.weights[4]).reshape(tokens.shape)
        if isinstance(self.selection, tuple):
            first, second = self.selection
            return tokens[:, first] * 2 + tokens[:, second]
        return tokens[:, self.selection]


def traced(block: Block) -> fx.GraphModule:
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    sizes = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DUCK, DimDynamic.STATIC, DimDynamic.STATIC])
    example = mode.from_tensor(torch.zeros(37, TOKENS, CHANNELS), symbolic_context=sizes)
    graph = make_fx(torch.func.functionalize(block, remove="mutations_and_views"), tracing_mode="symbolic")(example)
    simplify(graph)
    return graph


def rows_of_products(graph: fx.GraphModule, tokens: Tensor) -> list[int]:
    """Return the number of rows of each product in a run for one image, in order."""
    rows: list[int] = []

    class Runner(fx.Interpreter):
        def run_node(self, node: fx.Node) -> object:
            result = super().run_node(node)
            if node.target in (aten.mm.default, aten.bmm.default):
                assert isinstance(result, Tensor)
                rows.append(result.shape[-2])
            return result

    Runner(graph).run(tokens)
    return rows


@pytest.mark.parametrize(("selection", "count"), [(0, 1), (3, 1), (slice(0, 1), 1), (slice(1, 3), 2), ((0, 1), 2), ((1, 3), 3)], ids=str)
def test_only_the_selected_tokens_and_those_between_are_computed(selection: slice | int | tuple[int, int], count: int) -> None:
    block, tokens = Block(selection), torch.randn(1, TOKENS, CHANNELS)
    graph = traced(block)
    assert keep_needed_tokens(graph)
    query, key, value, scores, attended, hidden, output = rows_of_products(graph, tokens)
    assert (key, value) == (TOKENS, TOKENS), "all tokens are attended to"
    assert (query, scores, attended, hidden, output) == (count,) * 5
    several = torch.randn(4, TOKENS, CHANNELS)
    torch.testing.assert_close(graph(several), block(several))


@pytest.mark.parametrize("block", [Block(slice(0, TOKENS)), Block(slice(0, TOKENS, 2))], ids=["all tokens", "steps"])
def test_other_selections_change_nothing(block: Block) -> None:
    graph, tokens = traced(block), torch.randn(2, TOKENS, CHANNELS)
    assert not keep_needed_tokens(graph)
    torch.testing.assert_close(graph(tokens), block(tokens))


def test_tokens_are_computed_up_to_an_operator_that_mixes_them() -> None:
    block, tokens = Block(0, mixes=True), torch.randn(1, TOKENS, CHANNELS)
    graph = traced(block)
    assert keep_needed_tokens(graph)
    assert rows_of_products(graph, tokens) == [TOKENS] * 5 + [1, 1]
    torch.testing.assert_close(graph(tokens), block(tokens))


def test_the_gradient_of_a_vision_transformer_has_one_token_behind_the_last_attention() -> None:
    explainer = Explainer(plain("test_vit"), ["gradcam"])
    assert explainer.tail is not None
    sizes = [node.meta["val"].shape for node in explainer.tail.backward_graph.graph.nodes if node.target is aten.mm.default]
    rows = [str(size[0]) for size in sizes]
    positions = SIZE[0] // 16 * (SIZE[1] // 16)
    assert sum(row.startswith(f"{positions + 1}*") for row in rows) == 1, "the gradient of query, key and value"
    assert len(rows) == 5, "projection and two of the hidden layer; query, key and value, and the mean of their gradient"
