"""Seconds per epoch of fastai's frozen `vision_learner`; run by an interpreter that has fastai.

    python benchmarks/peers/fastai_frozen.py FOLDER NETWORK EPOCHS WORKERS

FOLDER holds a folder per class. The settings are those of benchmarks/feature_extraction.py: 224 x 224, batches of 32, no augmentation,
random weights, the body frozen as fastai does it (its batch norms still learn, which is fastai's default). Prints the seconds.
"""

from __future__ import annotations

import sys
import time

import torchvision
from fastai.vision.all import CrossEntropyLossFlat, ImageDataLoaders, Resize, accuracy, vision_learner


def main() -> None:
    folder, network, epochs, workers = sys.argv[1:]
    loaders = ImageDataLoaders.from_folder(
        folder, valid_pct=0.2, seed=0, item_tfms=Resize(224), bs=32, num_workers=int(workers), device="cpu"
    )
    learner = vision_learner(
        loaders, getattr(torchvision.models, network), pretrained=False, normalize=False, loss_func=CrossEntropyLossFlat(), metrics=accuracy
    )
    learner.freeze()
    with learner.no_bar(), learner.no_logging():
        began = time.perf_counter()
        learner.fit(int(epochs))
        print(time.perf_counter() - began)


if __name__ == "__main__":
    main()
