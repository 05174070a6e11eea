"""Parser for folder names that denote a part of a data set, such as `train`, `ValSet` or `seg_test`."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Word = Literal["train", "val", "test", "eval", "unlabelled"]

_WORDS: dict[str, Word] = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing", "tests", "holdout"), "test"),
    **dict.fromkeys(("eval", "evaluation", "evaluate"), "eval"),
    **dict.fromkeys(("pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled", "unsup"), "unlabelled"),
}

_FILLER = ("set", "sets", "data", "dataset", "image", "images", "img", "imgs", "image", "images", "photo", "photos", "seg", "split")
_MORE_FILLER = frozenset({*_FILLER, "folder", "dir", "file", "files", "samples", "the", "my", "jpg", "jpeg", "png", "cropped", "resized"})
_JOINED = re.compile(rf"({'|'.join(sorted(_WORDS, key=len, reverse=True))})(?:{'|'.join(_FILLER)})?")


class PartName(NamedTuple):
    """Parsed name of a part folder.

    word: part that the name denotes. rest: other words in the name; empty for names such as `train`, `seg_train` or `TestImages2017`.
    """

    word: Word
    rest: str


def part_name(folder: str) -> PartName | None:
    """Parse the name of a folder, and return None if it does not denote a part."""
    tokens = [token for token in re.split(r"[^a-z]+", folder.lower()) if token]
    words = [matched[1] for token in tokens if (matched := _JOINED.fullmatch(token))]
    if len(words) != 1:
        return None
    rest = [token for token in tokens if not _JOINED.fullmatch(token) and token not in _MORE_FILLER]
    if not rest and not tokens:
        return None
    return PartName(_WORDS[words[0]], "_".join(rest))
