"""Temperature folded into the graph: `softmax(logits / T)` at no cost, since the last layer's weights are divided by T.

Maps that are proportional to the gradient are divided by it too, and look the same. Grad-CAM++ weights by shares of the gradient's powers,
and Score-CAM and `softmax` explain probabilities: these maps change a little.
"""

from __future__ import annotations

import math
from typing import Literal

from tlcli.contract.errors import SettingsError

Temperature = float | Literal["fit"]
"""Number above 0, 1 for none; or `fit`, for the temperature that fits a run's validation part."""


def require_temperature(temperature: Temperature) -> None:
    """Check a temperature.

    Raises:
        SettingsError: it is neither a number above 0 nor `fit`.
    """
    if temperature != "fit" and not (math.isfinite(temperature) and temperature > 0):
        raise SettingsError(f"--temperature {temperature:g}: expected a number above 0, or fit")
