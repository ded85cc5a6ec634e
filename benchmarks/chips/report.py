"""What compiled programs will cost, as tables and as a chart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

import jaxloss
from benchmarks.report import LONGEST, Record, markdown

HEADER = (
    "workload, contender, cost, ratio, run, ratio, of least bytes, kernels, temporaries, "
    "products, sent, in loops, compile s"
).split(", ")
_DOUBTS = {
    "uncounted_loops": "a loop counted as one turn",
    "unpriced": "instructions without an estimate",
}


def versions() -> dict[str, str]:
    """Of whatever has a say in what is compiled."""
    found = {}
    for name in ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "optax"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | {"jaxloss": jaxloss.__version__}


def where(record: Record) -> str:
    """The chip, or the mesh of chips."""
    return f"{record['chip']} {record['mesh']}".strip()


def _rows(record: Record) -> Iterable[Sequence[str]]:
    for i, c in enumerate(record["contenders"]):
        names = record["workload"] if i == 0 else "", c["name"]
        if "error" in c:
            yield (*names, c["error"].partition(":")[0], *[""] * (len(HEADER) - 3))
            continue
        on_tpu, was_run = "kernels" not in c, "seconds" in c
        yield (
            *names,
            f"{c['cost'] / 1e6:.3g} Mcycles" if on_tpu else f"{c['cost'] * 1e3:.3g} ms",
            f"{c['ratio']:.2f}" if i and c["ratio"] is not None else "",
            f"{c['seconds'] * 1e3:.3g} ms" if was_run else "",
            f"{c['measured']:.2f}" if i and "measured" in c else "",
            "" if on_tpu else f"{c['moved'] / c['resident']:.2f}",
            "" if on_tpu else str(c["kernels"]),
            _megabytes(c["temporaries"]),
            ", ".join(f"{count} {dtypes}" for dtypes, count in c["products"].items()),
            _sent(c["sent"]),
            _sent(c["sent_in_loops"]),
            f"{c['compile_seconds']:.1f}" if "compile_seconds" in c else "",
        )


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB"


def _sent(kinds: dict[str, float]) -> str:
    return ", ".join(f"{kind} {_megabytes(count)}" for kind, count in kinds.items())


def table(records: Sequence[Record]) -> str:
    """A Markdown table without empty columns; ratios are jaxloss's cost to the contender's."""
    rows = [row for record in records for row in _rows(record)]
    shown = [n for n in range(len(HEADER)) if any(row[n] for row in rows)]
    return markdown([[row[n] for n in shown] for row in (HEADER, *rows)])


def _ratios(record: Record) -> dict[str, float]:
    """To the first peer, optax or the plain formula: as compiled, and where it was run, as run."""
    peer = record["contenders"][1]
    found = {where(record): peer.get("ratio"), f"{where(record)}, run": peer.get("measured")}
    return {place: ratio for place, ratio in found.items() if ratio is not None}


def _mean(ratios: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def brief(records: Sequence[Record]) -> str:
    """A Markdown table of geometric means, a line for each group of workloads and dtype."""
    places = _places(records)
    ratios: dict[str, dict[str, list[float]]] = {}
    for record in records:
        for place, ratio in _ratios(record).items():
            for line in (f"{record['group']}, {record['dtype']}", "all"):
                ratios.setdefault(line, {}).setdefault(place, []).append(ratio)
    ratios["all"] = ratios.pop("all", {})  # The last line.
    lines = [["workloads", "", *places]]
    for name, found in ratios.items():
        count = max(map(len, found.values()), default=0)
        lines.append([name, str(count), *(_span(found.get(place)) for place in places)])
    return markdown(lines)


def _places(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(place for record in records for place in _ratios(record)))


def _span(ratios: Sequence[float] | None) -> str:
    if not ratios:
        return ""
    return f"{_mean(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def summary(records: Sequence[Record]) -> str:
    """The geometric mean of the ratios on each chip, and which workloads to distrust."""
    found: dict[str, list[float]] = {}
    doubts: dict[str, list[str]] = {}
    for record in records:
        ratios, place = _ratios(record), where(record)
        if not ratios:
            doubts.setdefault(f"{place}: no ratio for", []).append(record["workload"])
        for which, ratio in ratios.items():
            found.setdefault(which, []).append(ratio)
        for field, doubt in _DOUBTS.items():
            if any(contender.get(field) for contender in record["contenders"]):
                doubts.setdefault(f"{place}: {doubt} in", []).append(record["workload"])
    lines = [
        f"{place}: jaxloss costs {_mean(ratios):.2f} of optax or the plain formula in JAX, "
        f"in the geometric mean of {len(ratios)} workloads"
        for place, ratios in found.items()
    ]
    return "\n".join(lines + [f"{doubt} {'; '.join(names)}" for doubt, names in doubts.items()])


def plot(records: Sequence[Record], path: Path) -> None:
    """Bars of the ratios to optax or the plain formula, a colour for each chip."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    places = _places(records)
    names = list(dict.fromkeys(record["workload"] for record in records))
    figure, axes = pyplot.subplots(
        figsize=(9, 1.5 + (0.06 + 0.055 * len(places)) * len(names)), layout="constrained"
    )
    height = 0.8 / len(places)
    for i, place in enumerate(places):
        found = {r["workload"]: _ratios(r)[place] for r in records if place in _ratios(r)}
        rows = [row for row, name in enumerate(names) if name in found]
        ratios = [found[names[row]] for row in rows]
        heights = [row + height * (i - (len(places) - 1) / 2) for row in rows]
        colour = ("#3b6fb6", "#8fb3de", "#d9642c", "#f0b48a", "#5a9e58", "#a9d3a5")[i % 6]
        axes.barh(heights, ratios, height=height, color=colour, label=place)
        for at, ratio in zip(heights, ratios, strict=True):
            if ratio > LONGEST:
                text = f"{ratio:.1f}"
                axes.text(0.99 * LONGEST, at, text, ha="right", va="center", fontsize=6)
    axes.axvline(1, color="black", lw=1)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlim(0, LONGEST)
    axes.set_xlabel("cost of jaxloss / cost of optax or the plain formula (left of 1 is cheaper)")
    axes.grid(axis="x", lw=0.4)
    axes.set_axisbelow(True)
    about = records[0]["versions"]
    title = "estimated from compiled programs (loss and gradient): " + ", ".join(
        f"{name} {about[name]}" for name in ("jaxlib", "libtpu", "optax")
    )
    figure.legend(
        loc="outside upper center", ncols=len(places), fontsize=8, title=title, title_fontsize=9
    )
    figure.savefig(path, dpi=110)
