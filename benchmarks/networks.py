"""Distance of the maps in the exported graph from a float64 autograd reference that is written from the papers: the largest difference
relative to the largest value of an image's maps, the median of three images. Written by `benchmarks/networks.py`, which describes the
procedure; random weights, {classes} classes, on ONNX Runtime on a CPU. `size` is the input's height and width in pixels. A dash: the method is
not defined there (CAM, if the head is not one linear layer on the layer's spatial mean). Bold: more than {tolerance:g}, or nothing to compare
(nan: all maps are zero).

{summary}

| network | family | size | layer | logits | {methods} |
|---|---|---|---|---|{rule}
"""


def _write(path: Path, rows: dict[str, list[str]], modules: str | None = None) -> None:
    """Write the page. `modules` is the second table; None keeps the existing one."""
    if modules is None:
        kept = timm_modules.read(path.read_text(encoding="utf-8")) if path.exists() else {}
        modules = timm_modules.section(kept) if kept else ""
    lines = [_bold(row) for name in rows for row in rows[name]]
    good = {name for name in rows if len(rows[name]) == 2 and not any("not exported" in row or "failed" in row for row in rows[name])}
    within = {name for name in good if not any("**" in _bold(row) for row in rows[name])}
    families = {row.split("|")[2].strip() for name in within for row in rows[name]}
    summary = (
        f"{len(rows)} networks tried: {len(good)} exported at both layers, {len(within)} of them, of {len(families)} families,"
        f" within {TOLERANCE:g}."
    )
    head = HEAD.format(tolerance=TOLERANCE, classes=CLASSES, summary=summary, methods=" | ".join(METHODS), rule="---|" * len(METHODS))
    with whole_file(path) as temporary:
        temporary.write_text(head + "\n".join(lines) + "\n" + (f"\n{modules}" if modules else ""), encoding="utf-8")


def _bold(row: str) -> str:
    cells = row.split("|")
    return "|".join(f" **{cell.strip()}** " if number >= 5 and _exceeds(cell) else cell for number, cell in enumerate(cells))


def _exceeds(cell: str) -> bool:
    try:
        return not float(cell) <= TOLERANCE
    except ValueError:
        return False


def _read(path: Path) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").partition("## Every timm module")[0].splitlines():
            if line.startswith("| ") and not line.startswith("| network"):
                rows.setdefault(line.split("|")[1].strip(), []).append(line.replace("**", ""))
    return rows


if __name__ == "__main__":
    main()
