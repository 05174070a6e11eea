"""Seconds and peak memory to list a label file of a million rows, as `tlcli finetune --dataset` does before images are checked. CPU.

    python benchmarks/label_files.py [--rows 1000000] [--formats csv,jsonl,parquet] [--images links|none] [--groups]

With `--images links`, each row names its own symbolic link to one image, in folders of 1,000, so that each existence check looks at
another file; links are made once per call. With `--images none`, the existence check is replaced, which leaves parsing. With `--groups`,
rows have a group of 10 images, and the split by groups is measured as well. Each format is measured in its own process.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

_PER_FOLDER = 1000
_CLASSES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--formats", default="csv,jsonl,parquet")
    parser.add_argument("--images", choices=["links", "none"], default="links")
    parser.add_argument("--groups", action="store_true")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        measure(arguments.measure, looks=arguments.images == "links")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if arguments.images == "links":
            make_links(folder, arguments.rows)
        print("| format | file, MB | list, s | of the processor, s | split by groups, s | peak memory, MB |\n|---|---|---|---|---|---|")
        for name in arguments.formats.split(","):
            path = folder / f"labels.{name}"
            write(path, arguments.rows, groups=arguments.groups)
            command = [sys.executable, __file__, "--measure", str(path), "--images", arguments.images]
            finished = subprocess.run(command, capture_output=True, text=True, check=True)
            listed, processor, divided, peak = json.loads(finished.stdout)
            print(f"| {name} | {path.stat().st_size / 1e6:.0f} | {listed:.1f} | {processor:.1f} | {divided:.1f} | {peak:.0f} |", flush=True)


def rows(count: int, groups: bool) -> Iterator[dict[str, str]]:
    classes = np.random.default_rng(0).integers(0, _CLASSES, count).tolist()
    for number, label in enumerate(classes):
        row = {"path": f"images/{number // _PER_FOLDER:05d}/{number:08d}.png", "label": f"class {label}"}
        yield row | {"group": f"patient {number // 10}"} if groups else row


def make_links(folder: Path, count: int) -> None:
    Image.new("RGB", (8, 8)).save(folder / "image.png")
    for number, row in enumerate(rows(count, groups=False)):
        if number % _PER_FOLDER == 0:
            (folder / row["path"]).parent.mkdir(parents=True)
        os.symlink(folder / "image.png", folder / row["path"])


def write(path: Path, count: int, *, groups: bool) -> None:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.Table.from_pylist(list(rows(count, groups)))
        pyarrow.parquet.write_table(table, path)
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows(count, groups))
        elif path.suffix == ".json":
            file.write("[" + ",\n".join(json.dumps(row) for row in rows(count, groups)) + "]\n")
        else:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerow(next(rows(1, groups)))
            writer.writerows(row.values() for row in rows(count, groups))


def measure(path: Path, *, looks: bool) -> None:
    """Print the seconds of listing a file, on the clock and of the processor, those of dividing its groups, and the peak memory in MB."""
    from tlcli.training.data.label_file import list_label_file
    from tlcli.training.data.label_files.group_split import split_groups
    from tlcli.training.data.label_files.image_paths import ImagePaths
    from tlcli.training.runtime.progress import silent

    if not looks:
        ImagePaths._look = lambda self, name: None  # type: ignore[method-assign]
    began, processor = time.perf_counter(), time.process_time()
    listing = list_label_file(str(path), {}, None, silent)
    listed, processor = time.perf_counter(), time.process_time() - processor
    if listing.groups is not None:
        names = [name for images in listing.train.values() for name in images]
        sizes = [len(images) for images in listing.train.values()]
        split_groups([listing.groups[name] for name in names], np.repeat(np.arange(len(sizes)), sizes), 0.2, 0)
    divided = time.perf_counter()
    print(json.dumps([listed - began, processor, divided - listed, peak_memory()]))


def peak_memory() -> float:
    """Return the peak resident memory of this process in MB. `getrusage` would include that of the process that started it."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
