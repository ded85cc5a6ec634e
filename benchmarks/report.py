"""What has been measured, as a table and as a chart."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import jaxloss

Record = Mapping[str, Any]  # One workload, as in a line of the JSON file.
LONGEST = 2  # Bar of the chart; the numbers of longer ones are written into them.
_IN_JAX = "optax or the plain formula in JAX"
HEADER = tuple(
    "workload, contender, ms, ratio, quartiles, compile s, bytes, of copy, temporaries".split(", ")
)
MEMORY_BOUND = ("elementwise", "classes", "embeddings")  # Groups.


def machine() -> dict[str, str]:
    """The device, and the versions of what is compared."""
    device = jax.devices()[0]
    kind = device.device_kind
    if device.platform == "cpu":
        kind = f"{_cpu() or platform.machine()}, {os.cpu_count()} cores"
    versions = {name: _version(name) for name in ("jax", "jaxlib", "optax", "torch", "torchaudio")}
    python = platform.python_version()
    return {"device": kind, "python": python, **versions, "jaxloss": jaxloss.__version__}


def _cpu() -> str | None:
    lines = Path("/proc/cpuinfo")
    if not lines.exists():
        return platform.processor()
    names = (line.split(":")[1] for line in lines.read_text().splitlines() if "model name" in line)
    return next(names, "").strip()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def rows(record: Record) -> Iterable[tuple[str, ...]]:
    """A line of the table for each contender."""
    for i, c in enumerate(record["contenders"]):
        low, high = c["spread"]
        yield (
            record["workload"] if i == 0 else "",
            c["name"],
            f"{1e3 * c['seconds']:.3g}",
            f"{c['ratio']:.2f}" if i else "",
            f"{low:.2f}–{high:.2f}" if i else "",
            "" if c["compile_seconds"] is None else f"{c['compile_seconds']:.2f}",
            f"{c['bytes_accessed'] / record['floor_bytes']:.2f}" if c["bytes_accessed"] else "",
            _of_copy(record, c["seconds"]),
            "" if c["temporaries"] is None else f"{c['temporaries'] / 1e6:.1f} MB",
        )


def _of_copy(record: Record, seconds: float) -> str:
    """The bandwidth of reading inputs and writing gradients once, as a share of that of a copy."""
    if record["group"] not in MEMORY_BOUND:
        return ""
    gigabytes, _ = record["machine"]["copy"].split()
    return f"{record['floor_bytes'] / seconds / (1e9 * float(gigabytes)):.0%}"


def table(records: Sequence[Record]) -> str:
    """A Markdown table; ratios are jaxloss's time to the contender's."""
    return markdown([HEADER, *(row for record in records for row in rows(record))])


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table that can be read as it is; the first line is its header."""
    lines = list(lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    cells = ([cell.ljust(w) for cell, w in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _kind(peer: Mapping[str, Any]) -> str:
    return peer["name"] if peer["name"] in ("torch", "torch.compile", "cuDNN") else _IN_JAX


def brief(records: Sequence[Record]) -> str:
    """A Markdown table of the ratios alone, a line for each workload."""
    kinds = _kinds(records)
    lines = [
        f"| workload | ms | {' | '.join('optax or plain' if k == _IN_JAX else k for k in kinds)} |",
        "|---" * (2 + len(kinds)) + "|",
    ]
    for record in records:
        ours, *peers = record["contenders"]
        ratios = {_kind(peer): f"{peer['ratio']:.2f}" for peer in peers}
        cells = f"{1e3 * ours['seconds']:.3g}", *(ratios.get(kind, "") for kind in kinds)
        lines.append(f"| {record['workload']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _kinds(records: Sequence[Record]) -> list[str]:
    """cuDNN has a column only where it was there."""
    found = {_kind(peer) for record in records for peer in record["contenders"][1:]}
    return [_IN_JAX, "torch", "torch.compile", *(["cuDNN"] if "cuDNN" in found else [])]


def summary(records: Sequence[Record]) -> str:
    """The geometric mean of the ratios to each peer."""
    ratios: dict[str, list[float]] = {}
    for record in records:
        if record["group"] == "calls":
            continue
        _, *peers = record["contenders"]
        for peer in peers:
            ratios.setdefault(_kind(peer), []).append(peer["ratio"])
    return "\n".join(
        f"jaxloss takes {math.exp(sum(map(math.log, r)) / len(r)):.2f} of the time of {name}, "
        f"in the geometric mean of {len(r)} workloads"
        for name, r in ratios.items()
    )


def plot(records: Sequence[Record], path: Path) -> None:
    """Bars of the ratios, shorter is faster; quartiles as whiskers."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    records = [record for record in records if record["group"] != "calls"]
    colours = {"torch": "#d9642c", "torch.compile": "#f0b48a", "cuDNN": "#5a9e58"}
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.42 * len(records)), layout="constrained")
    names = [record["workload"] for record in records]
    shown = set()
    for row, record in enumerate(records):
        peers = record["contenders"][1:]
        for i, peer in enumerate(peers):
            kind = _kind(peer)
            low, high = peer["spread"]
            place = row + 0.8 * ((i + 0.5) / len(peers) - 0.5)
            axes.barh(
                place,
                peer["ratio"],
                height=0.8 / len(peers),
                color=colours.get(kind, "#3b6fb6"),
                xerr=[[max(0, peer["ratio"] - low)], [max(0, high - peer["ratio"])]],
                error_kw={"lw": 0.8, "ecolor": "#444444"},
                label=None if kind in shown else kind,
            )
            shown.add(kind)
            if peer["ratio"] > LONGEST:
                axes.text(
                    0.99 * LONGEST,
                    place,
                    f"{peer['ratio']:.1f}",
                    ha="right",
                    va="center",
                    fontsize=7,
                )
    axes.axvline(1, color="black", lw=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlim(0, LONGEST)
    axes.set_xlabel("time of jaxloss / time of the peer (loss and gradient; left of 1 is faster)")
    about = records[0]["machine"]
    axes.set_title(
        f"{about['device']}; jax {about['jax']}, torch {about['torch']}, optax {about['optax']}",
        fontsize=9,
    )
    axes.grid(axis="x", lw=0.4)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=110)
