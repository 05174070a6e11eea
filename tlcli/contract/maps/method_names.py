"""Registry of map methods. Each has one name, used on the command line, in requests, in the description, and for the graph's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tlcli.contract.errors import RequestError


@dataclass(frozen=True)
class Method:
    """A class activation map method.

    name: name on the command line and in requests, and of the graph's output.
    title: name as spelled in papers.
    source: reference that defines the formula.
    in_graph: True if the graph computes the map, False if `tlcli.contract.model.explain` computes it from the outputs of the graph.
    of_class: True if the map depends on the explained class, False if it is the same for every class.
    of_attention: True if the map is computed from the attention of all blocks, which only vision transformers have.
    costly: True if the graph runs the part of the network after the layer once per channel or position.
    """

    name: str
    title: str
    source: str
    in_graph: bool = True
    of_class: bool = True
    of_attention: bool = False
    costly: bool = False


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("cam", "CAM", "Zhou et al. 2016, arXiv:1512.04150, eq. 2"),
        Method("gradcam", "Grad-CAM", "Selvaraju et al. 2017, arXiv:1610.02391, eqs. 1 and 2"),
        Method("gradcam_plus_plus", "Grad-CAM++", "Chattopadhay et al. 2018, arXiv:1710.11063, eqs. 5, 10 and 19"),
        Method("xgradcam", "XGrad-CAM", "Fu et al. 2020, arXiv:2008.02312, eq. 8"),
        Method("hirescam", "HiRes-CAM", "Draelos and Carin 2020, arXiv:2011.08891"),
        Method("gradcam_elementwise", "Grad-CAM element-wise", "Grad-CAM (arXiv:1610.02391) without its mean, each product rectified"),
        Method("layercam", "Layer-CAM", "Jiang et al. 2021, doi:10.1109/TIP.2021.3089943, eqs. 5 and 6"),
        Method("fem", "FEM", "Ahmed Asif Fuad et al. 2020, doi:10.1109/IPTA50016.2020.9286629", of_class=False),
        Method("ablationcam", "Ablation-CAM", "Ramaswamy 2020, doi:10.1109/WACV45572.2020.9093360", costly=True),
        Method("finercam", "Finer-CAM", "Zhang et al. 2025, arXiv:2501.11309"),
        Method("reciprocam", "Recipro-CAM", "Byun and Lee 2022 and 2023, arXiv:2209.14074 and arXiv:2310.02588", costly=True),
        Method("rollout", "Attention rollout", "Abnar and Zuidema 2020, arXiv:2005.00928", of_class=False, of_attention=True),
        Method("legrad", "LeGrad", "Bousselham et al. 2024, arXiv:2404.03214", of_attention=True),
        Method("eigencam", "Eigen-CAM", "Muhammad and Yeasin 2020, arXiv:2008.00299", in_graph=False, of_class=False),
        Method("eigengradcam", "Eigen-Grad-CAM", "Eigen-CAM (arXiv:2008.00299) of the activations times their gradients", in_graph=False),
        Method("scorecam", "Score-CAM", "Wang et al. 2020, arXiv:1910.01279, algorithm 1", in_graph=False),
        Method("faster_scorecam", "Faster-Score-CAM", "Score-CAM (arXiv:1910.01279) over the channels that vary most", in_graph=False),
    )
}

IN_GRAPH = tuple(method.name for method in METHODS.values() if method.in_graph and not method.of_attention)
"""Methods that the graph computes for networks of any kind."""

OF_ATTENTION = tuple(method.name for method in METHODS.values() if method.of_attention)
"""Methods that the graph computes for vision transformers."""

COSTLY = tuple(method.name for method in METHODS.values() if method.costly)
"""Methods in the graph that are computed only for requests that select them, and checked on few images."""


def require_method(name: str, offered: Sequence[str], where: str) -> str:
    """Check that a model offers a map.

    Args:
        name: name of the requested map.
        offered: names of the model's maps.
        where: name of the model for error messages.

    Returns:
        `name`.

    Raises:
        RequestError: the model does not have this map; the message lists its maps.
    """
    if name in offered:
        return name
    choices = ", ".join(offered) or "none: it was exported without maps"
    raise RequestError(f"{where} has no map method {name!r}; it has: {choices}")


def require_methods(names: Sequence[str], offered: Sequence[str], where: str) -> tuple[str, ...]:
    """Check that a model offers all maps in `names`, where `all` selects every map of the model.

    Returns:
        Names of the maps, without duplicates and with `all` expanded.

    Raises:
        RequestError: see `require_method`; also raised for `all` if the model has no maps.
    """
    chosen: list[str] = []
    for name in names:
        chosen += offered if name == "all" and offered else [require_method(name, offered, where)]
    return tuple(dict.fromkeys(chosen))


def map_name(method: str, layer: str | None) -> str:
    """Return the name of a map: the method alone, or the method and the layer if the model explains several (`gradcam@layer3`)."""
    return method if layer is None else f"{method}@{layer}"
