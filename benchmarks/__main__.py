"""Runs the workloads: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import jax
from tqdm import tqdm

from benchmarks import measure, report
from benchmarks.workloads import WORKLOADS, Workload

_COMPILED = "JAXLOSS_COMPILE_SECONDS"  # From before the new start, see `keep_memory`.


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=report.__doc__)
    add = parser.add_argument
    add("--list", action="store_true", help="name the workloads and stop")
    add("--only", metavar="REGEX", default="", help="the workloads whose name or group matches")
    add("--device", choices=["cpu", "gpu", "tpu"], help="by default what JAX finds")
    add("--no-torch", action="store_true", help="leave torch out")
    add("--seconds", type=float, default=6, help="about how long to time a workload (default 6)")
    add("--json", type=Path, metavar="FILE", help="write a line of JSON for each workload")
    add("--read", type=Path, metavar="FILE", help="show what --json wrote instead of measuring")
    add("--plot", type=Path, metavar="FILE", help="draw the ratios")
    return parser.parse_args(given)


def torch_to_compare_with(device: str) -> Any:
    """The module, or None where it is not installed or does not have the device."""
    if importlib.util.find_spec("torch") is None:
        return None
    torch = importlib.import_module("torch")
    if device == "tpu" or (device == "gpu" and not torch.cuda.is_available()):
        return None
    return torch


def run(
    workload: Workload, torch: Any, seconds: float, compiled: dict[str, float]
) -> dict[str, Any]:
    """Measures one workload."""
    arrays = workload.arrays()
    contenders = measure.contenders(workload, arrays, torch, compiled)
    wanted, compared = contenders[0].value, []
    for contender in contenders:
        same = math.isclose(contender.value, wanted, rel_tol=1e-3)
        if same or (not workload.floats and contender.name == workload.peer_name):
            compared.append(contender)
        else:
            message = f"{workload.name}: left out {contender.name}, whose value is "
            tqdm.write(f"{message}{contender.value:.6g} and not {wanted:.6g}", file=sys.stderr)
    timings = measure.compare(compared, seconds)
    fields = ("name", "compile_seconds", "bytes_accessed", "temporaries")
    return {
        "workload": workload.name,
        "group": workload.group,
        "floor_bytes": measure.floor_bytes(workload, arrays),
        "contenders": [
            {field: getattr(contender, field) for field in fields} | dataclasses.asdict(timing)
            for contender, timing in zip(compared, timings, strict=True)
        ],
    }


def compile_seconds(chosen: list[Workload]) -> dict[str, dict[str, float]]:
    """Times the compilations of all workloads."""
    seconds = {}
    for workload in tqdm(chosen, unit="compilation", file=sys.stderr, leave=False):
        arrays = workload.arrays()
        seconds[workload.name] = measure.compile_seconds(workload, arrays)
    return seconds


def keep_memory(found: dict[str, dict[str, float]]) -> NoReturn:
    """Starts anew with a malloc that keeps what was freed, where it is glibc's.

    It would return large arrays to the system after every call, and the page faults of getting
    them back take longer than most losses do. The compiler's threads would have to wait for each
    other, so that compilations have been timed before: what was found is passed on.
    """
    wanted = {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**40),
        _COMPILED: json.dumps(found),
    }
    command = [sys.executable, "-m", "benchmarks", *sys.argv[1:]]
    os.execve(sys.executable, command, os.environ | wanted)


def main() -> None:
    options = arguments()
    chosen = [w for w in WORKLOADS if re.search(options.only, f"{w.group}: {w.name}")]
    if not chosen:
        raise SystemExit(f"--only: no workload matches {options.only!r}; --list names them")
    if options.list:
        print("\n".join(f"{w.group}: {w.name}" for w in chosen))
        return
    if options.read:
        records = [json.loads(line) for line in options.read.read_text().splitlines()]
        names = {w.name for w in chosen}
        records = [record for record in records if record["workload"] in names]
    else:
        if options.device:
            jax.config.update("jax_platforms", {"gpu": "cuda"}.get(options.device, options.device))
        if _COMPILED not in os.environ:
            keep_memory(compile_seconds(chosen))
        seconds = json.loads(os.environ[_COMPILED])
        torch = None if options.no_torch else torch_to_compare_with(jax.default_backend())
        about = report.machine() | {"copy": f"{measure.copy_bandwidth() / 1e9:.1f} GB/s"}
        records = []
        progress = tqdm(chosen, unit="workload", file=sys.stderr)
        for workload in progress:
            progress.set_postfix_str(workload.name)
            record = run(workload, torch, options.seconds, seconds[workload.name])
            records.append(record | {"machine": about})
            if options.json:
                lines = "".join(json.dumps(record) + "\n" for record in records)
                options.json.write_text(lines)
    if not records:
        raise SystemExit("no records to show")
    print(", ".join(f"{name} {value}" for name, value in records[0]["machine"].items()))
    for part in (report.table, report.brief, report.summary):
        print(f"\n{part(records)}")
    if options.plot:
        report.plot(records, options.plot)


if __name__ == "__main__":
    main()
