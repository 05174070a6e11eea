"""The map methods: one name each in the command line, the wire, the description and the graph's outputs."""

from __future__ import annotations

from dataclasses import dataclass

from contract.errors import RequestError


@dataclass(frozen=True)
class Method:
    """A class activation map method.

    name: what users type, and the graph's output.
    title: how papers write it.
    source: where its formula is defined.
    """

    name: str
    title: str
    source: str


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("cam", "CAM", "Zhou et al. 2016, arXiv:1512.04150, eq. 2"),
        Method("gradcam", "Grad-CAM", "Selvaraju et al. 2017, arXiv:1610.02391, eqs. 1 and 2"),
    )
}


def require_method(name: str, offered: tuple[str, ...], where: str) -> str:
    """`name`, if it is among `offered`, the methods of the model that `where` names.

    Raises:
        RequestError: it is not; the message lists those that are.
    """
    if name in offered:
        return name
    choices = ", ".join(offered) or "none: it was exported without maps"
    raise RequestError(f"{where} has no map method {name!r}; it has: {choices}")
