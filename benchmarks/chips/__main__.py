"""Compiles the workloads for a chip: `python -m benchmarks.chips --help`."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding
from tqdm import tqdm

from benchmarks import measure
from benchmarks.chips import report, topology
from benchmarks.chips.compiled import compiled, costs
from benchmarks.chips.workloads import CASES, Case, Contender, Shapes, arguments, mesh_cases


def options(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chips", description=__doc__)
    add = parser.add_argument
    add("names", nargs="*", metavar="REGEX", help="the workloads whose name or group matches any")
    add("--chip", choices=topology.CHIPS, help="to compile for; it need not be here")
    add("--here", action="store_true", help="compile for the GPU that is here, and run it there")
    add("--seconds", type=float, default=2, help="about how long to run a workload (default 2)")
    add("--mesh", metavar="4x4", default="", help="linear cross entropy on a mesh of such chips")
    add("--list", action="store_true", help="name the workloads and stop")
    add("--json", type=Path, metavar="FILE", help="write a line of JSON for each workload into it")
    add("--read", type=Path, metavar="FILE", nargs="+", help="show what --json wrote")
    add("--plot", type=Path, metavar="FILE", help="draw the ratios")
    return parser.parse_args(given)


def cases(mesh: str) -> list[Case]:
    """Those of a mesh, or those of one chip."""
    if not mesh:
        return CASES
    devices = np.prod([int(size) for size in mesh.split("x")])
    large = devices >= 256
    return mesh_cases(*((2**20, 8192, 262144) if large else (32768, 4096, 131072)))


def record(case: Case, chip: topology.Chip, shape: str) -> dict[str, Any]:
    """Compiles one workload in all of its implementations."""
    found = []
    for name, contender in case.contenders.items():
        read = _costs(contender, case.shapes(), case.specs, case.floats, chip, shape)
        found.append({"name": name, **read})
    return _recorded(case, chip, shape, found)


def record_here(case: Case, chip: topology.Chip, seconds: float) -> dict[str, Any]:
    """The same for a chip that is here, where they are run as well."""
    arrays, found, running = case.arrays(), [], []
    for name, contender in case.contenders.items():
        found.append(read := {"name": name})
        try:
            program, _ = _compiled(contender, case.shapes(), case.specs, case.floats, chip, "")
            start = functools.partial(program, *arrays)
            value = float(start()[0])
        except Exception as error:  # It may be too large.
            read |= _error(error)
            continue
        read |= costs(program, chip)
        running.append(measure.Contender(name, start, jax.block_until_ready, value))
    ran = (read for read in found if "error" not in read)
    for read, timing in zip(ran, measure.compare(running, seconds), strict=True):
        read |= {"seconds": timing.seconds}
        if "error" not in found[0]:  # What the ratios are to.
            read |= {"measured": timing.ratio, "spread": timing.spread}
    return _recorded(case, chip, "", found)


def _recorded(case, chip, shape, found):
    ours = found[0].get("cost")
    for other in found:
        theirs = other.get("cost")
        other["ratio"] = ours / theirs if ours and theirs else None
    return {
        "workload": case.name,
        "group": case.group,
        "dtype": str(case.shapes()[0].dtype),
        "chip": chip.name,
        "mesh": shape,
        "versions": report.versions(),
        "contenders": found,
    }


@functools.lru_cache(maxsize=8)  # Workloads may share a peer.
def _costs(
    contender: Contender,
    shapes: Shapes,
    specs: Any,
    floats: tuple[int, ...],
    chip: topology.Chip,
    shape: str,
) -> dict[str, Any]:
    try:
        program, seconds = _compiled(contender, shapes, specs, floats, chip, shape)
    except Exception as error:  # What cannot be compiled is a result, too.
        return _error(error)
    return costs(program, chip) | {"compile_seconds": round(seconds, 2)}


def _error(error):
    message = str(error).partition("\n")[0][:200]
    return {"error": f"{type(error).__name__}: {message}"}


def _compiled(contender, shapes, specs, floats, chip, shape):
    with contextlib.ExitStack() as stack:
        sharding: Callable[[Any], Sharding] = chip.one_device
        if shape:
            devices = np.array(chip.devices).reshape(int(shape.split("x")[0]), -1)
            mesh = Mesh(devices, ("data", "model"), axis_types=(contender.axes,) * 2)
            stack.enter_context(jax.set_mesh(mesh))
            sharding = functools.partial(NamedSharding, mesh)
        f = jax.value_and_grad(contender.loss, floats)
        return compiled(f, arguments(shapes, specs, sharding), chip)


def run(chosen: list[Case], chip: topology.Chip, given: argparse.Namespace) -> list[Any]:
    """Compiles the chosen workloads; what the JSON file has of others stays in it."""
    found = {}
    if given.json and given.json.exists():
        found = {r["workload"]: r for r in map(json.loads, given.json.read_text().splitlines())}
    progress = tqdm(chosen, unit="workload", file=sys.stderr)
    for case in progress:
        progress.set_postfix_str(case.name)
        if given.here:
            found[case.name] = record_here(case, chip, given.seconds)
        else:
            found[case.name] = record(case, chip, given.mesh)
        if given.json:
            kept = (found[other.name] for other in cases(given.mesh) if other.name in found)
            given.json.write_text("".join(json.dumps(r) + "\n" for r in kept))
    return [found[case.name] for case in chosen]


def main() -> None:
    given = options()

    def wanted(group: str, name: str) -> bool:
        return any(re.search(pattern, f"{group}: {name}") for pattern in given.names or [""])

    chosen = [case for case in cases(given.mesh) if wanted(case.group, case.name)]
    if given.read:
        lines = [line for file in given.read for line in file.read_text().splitlines()]
        records = [r for r in map(json.loads, lines) if wanted(r["group"], r["workload"])]
    elif not chosen:
        raise SystemExit(f"no workload matches {' or '.join(given.names)}; --list names them")
    elif given.list:
        print("\n".join(f"{case.group}: {case.name}" for case in chosen))
        return
    elif not (given.chip or given.here):
        chips = ", ".join(topology.CHIPS)
        raise SystemExit(f"--chip: one of {chips}; or --here; or --read a FILE")
    else:
        try:
            chip = topology.here() if given.here else topology.chip(given.chip, given.mesh)
        except topology.NotInstalledError as error:
            raise SystemExit(str(error)) from None
        records = run(chosen, chip, given)
    if not records:
        raise SystemExit("no records to show")
    print(", ".join(f"{name} {value}" for name, value in records[0]["versions"].items()))
    for part in (report.table, report.brief, report.summary):
        print(f"\n{part(records)}")
    if given.plot:
        report.plot(records, given.plot)


if __name__ == "__main__":
    main()
