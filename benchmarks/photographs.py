"""Photographs and their class activation maps, for the README and the gallery.

    python benchmarks/photographs.py MODEL [--output docs/images]

MODEL is an ImageNet classifier that `tlcli export` wrote, for example

    tlcli export --backbone tf_efficientnet_lite0 --weights FILE --name imagenet

The photographs come with scikit-image (`pip install scikit-image`): Chelsea the cat by Stéfan van der Walt and the cup of coffee by Rachel
Michetti are CC0; NASA's portrait of Eileen Collins and SpaceX's launch of DSCOVR are in the public domain. Writes

    cat-and-cup.jpg   the cat and the cup beside their Grad-CAM maps
    photographs.jpg   all four with their maps
    methods.jpg       the cat under eight map methods
    classes.jpg       the cup explained for its first three classes

and prints the first three classes of each photograph.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import skimage.data
from PIL import Image, ImageDraw, ImageFont

import tlcli

HEIGHT = 260
GAP = 8
LINE = 26
PHOTOGRAPHS = ("chelsea", "coffee", "astronaut", "rocket")
METHODS = ("gradcam", "gradcam_plus_plus", "hirescam", "layercam", "ablationcam", "eigencam", "scorecam", "fem")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    arguments = parser.parse_args()
    model = tlcli.load(arguments.model)
    arguments.output.mkdir(parents=True, exist_ok=True)
    photographs = {name: Image.fromarray(getattr(skimage.data, name)()) for name in PHOTOGRAPHS}
    answers = {name: model.predict(photograph, cam="gradcam") for name, photograph in photographs.items()}
    for name, answer in answers.items():
        print(name, "; ".join(f"{guess.label} {guess.score:.1%}" for guess in answer.top(3)))
    rows = [[(photographs[name], ""), (answer.overlay, caption(answer.label, answer.score))] for name, answer in answers.items()]
    save([rows[0] + rows[1]], arguments.output / "cat-and-cup.jpg")
    save([rows[0] + rows[1], rows[2] + rows[3]], arguments.output / "photographs.jpg")
    cat = model.predict(photographs["chelsea"], cam=METHODS)
    tiles = [(cat.draw(cam=method), method) for method in METHODS]
    save([tiles[:4], tiles[4:]], arguments.output / "methods.jpg")
    cup = model.predict(photographs["coffee"], cam="gradcam", classes=[-1, -2, -3])
    save([[(cup.draw(cls=guess.class_id), caption(guess.label, guess.score)) for guess in cup.top(3)]], arguments.output / "classes.jpg")


def caption(label: str, score: float) -> str:
    """Return a label's first synonym with its score."""
    return f"{label.split(',')[0]}, {score:.0%}"


def save(rows: Sequence[Sequence[tuple[Image.Image, str]]], path: Path) -> None:
    """Write images of one height, with captions below them, as one JPEG."""
    font = ImageFont.load_default(16)
    scaled = [
        [(image.resize((round(image.width * HEIGHT / image.height), HEIGHT), Image.Resampling.LANCZOS), text) for image, text in row]
        for row in rows
    ]
    width = max(sum(image.width + GAP for image, _ in row) for row in scaled) - GAP
    sheet = Image.new("RGB", (width, len(rows) * (HEIGHT + LINE)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(scaled):
        left, top = 0, number * (HEIGHT + LINE)
        for image, text in row:
            sheet.paste(image, (left, top))
            draw.text((left + image.width / 2, top + HEIGHT + LINE / 2), text, fill="black", font=font, anchor="mm")
            left += image.width + GAP
    sheet.save(path, quality=88)


if __name__ == "__main__":
    main()
