"""Temperature scaling folded into the graph.

Dividing the last layer's weights by the temperature T gives `softmax(logits / T)` at no runtime cost. Maps that are proportional to the
gradient are also divided by T and look the same. Three kinds of maps change slightly: Grad-CAM++, whose weights are ratios of powers of the
gradient, Score-CAM, and maps requested with `softmax`, since the last two explain probabilities.
"""

from __future__ import annotations

import math
from typing import Literal

from tlcli.contract.errors import SettingsError

Temperature = float | Literal["fit"]
"""Number above 0, where 1 leaves the logits unchanged, or `fit` to fit the temperature on the run's validation split."""


def require_temperature(temperature: Temperature) -> None:
    """Check that a temperature is valid.

    Raises:
        SettingsError: the temperature is neither a number above 0 nor `fit`.
    """
    if temperature != "fit" and not (math.isfinite(temperature) and temperature > 0):
        raise SettingsError(f"--temperature {temperature:g}: expected a number above 0, or fit")
