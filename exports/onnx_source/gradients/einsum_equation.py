"""Equations of Einsum, brought into a plain form: every letter is one axis of one size, and each operand has a letter at most once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_letters


@dataclass(frozen=True)
class Equation:
    """Equation without dots, broadcasting and repeated letters.

    operands: letters of each operand, without those of axes of size 1 that are broadcast.
    output: letters of the output.
    sizes: size of each letter.
    diagonals: pairs of letters whose axes a repeated letter of the text combined: the equation has an identity matrix for each.
    unused: letters that do not occur.
    places: for each operand, the axis of each of its letters in the value.
    """

    operands: tuple[str, ...]
    output: str
    sizes: dict[str, int]
    diagonals: tuple[str, ...]
    unused: str
    places: tuple[dict[str, int], ...]

    def axis(self, operand: int, letter: str) -> int:
        """Return the axis of a letter in the value of an operand."""
        return self.places[operand][letter]


def plain_equation(text: str, shapes: Sequence[tuple[int, ...]]) -> Equation:
    """Bring an equation into its plain form.

    Args:
        text: attribute `equation`.
        shapes: shape of each operand, for one image.
    """
    left, arrow, output = text.replace(" ", "").partition("->")
    terms = left.split(",")
    unused = [letter for letter in ascii_letters if letter not in text]
    ranks = [len(shape) - len(term.replace("...", "")) for term, shape in zip(terms, shapes, strict=True) if "..." in term]
    dots = "".join(unused[: max(ranks, default=0)])
    unused = unused[len(dots) :]
    if not arrow:
        once = sorted(letter for letter in {*left} - {*",."} if left.count(letter) == 1)
        output = ("..." if "..." in left else "") + "".join(once)
    terms, output = [term.replace("...", dots) for term in terms], output.replace("...", dots)
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for letter, size in zip(term, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    operands, places, diagonals = [], [], []
    for term, shape in zip(terms, shapes, strict=True):
        place: dict[str, int] = {}
        for axis, (letter, size) in enumerate(zip(term, shape, strict=True)):
            if size == 1 < sizes[letter]:
                continue
            if letter in place:
                diagonals.append(f"{letter}{unused[0]}")
                letter, *unused = unused
                sizes[letter] = size
            place[letter] = axis
        operands.append("".join(place))
        places.append(place)
    return Equation(tuple(operands), output, sizes, tuple(diagonals), "".join(unused), tuple(places))
