"""All gradient rules, by operator. To support another operator, write its rule in the module of its kind, and add it to the table there."""

from __future__ import annotations

from tlcli.exports.onnx_source.gradients.elementwise_rules import ELEMENTWISE_RULES
from tlcli.exports.onnx_source.gradients.gradient_flow import Rule
from tlcli.exports.onnx_source.gradients.linear_rules import LINEAR_RULES
from tlcli.exports.onnx_source.gradients.pooling_rules import POOLING_RULES
from tlcli.exports.onnx_source.gradients.resampling_rules import RESAMPLING_RULES
from tlcli.exports.onnx_source.gradients.selection_rules import SELECTION_RULES
from tlcli.exports.onnx_source.gradients.shape_rules import SHAPE_RULES

RULES: dict[str, Rule] = ELEMENTWISE_RULES | LINEAR_RULES | POOLING_RULES | RESAMPLING_RULES | SELECTION_RULES | SHAPE_RULES
