"""Chips, here or not: what their compilers have to know, and how they are asked."""

from __future__ import annotations

import dataclasses
import importlib.util
import mmap
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

# The smallest topologies that the compiler knows, of which one device is taken.
TPUS = {"v4": "2x2x1", "v5e": "2x2", "v5p": "2x2x1", "v6e": "2x2", "tpu7x": "2x2x1"}
GPUS = {
    "a100": "NVIDIA A100-SXM4-80GB",
    "h100": "NVIDIA H100 80GB HBM3",
    "h200": "NVIDIA H200 141GB HBM3e",
    "b200": "NVIDIA B200",
    "gb200": "NVIDIA GB200",
}
CHIPS = (*TPUS, *GPUS)
# XLA's numbers of dtypes, by which it lists the speeds of the matrix units.
_DTYPES = {"s8": 2, "f16": 10, "f32": 11, "f64": 12, "bf16": 16, "f8e5m2": 19, "f8e4m3fn": 20}


@dataclasses.dataclass(frozen=True, eq=False)
class Chip:
    """Devices to compile for."""

    name: str
    platform: str  # As JAX lowers for it.
    devices: Sequence[Any]
    bandwidth: float = 0.0  # Of a GPU: bytes per second by its data sheet.
    rates: dict[str, float] = dataclasses.field(default_factory=dict)  # Operations per second.

    def one_device(self, spec: None = None) -> SingleDeviceSharding:
        return SingleDeviceSharding(self.devices[0])


class NotInstalledError(RuntimeError):
    """The compiler of a chip is not there."""


def chip(name: str, shape: str = "") -> Chip:
    """The chip, or a mesh of a shape such as "4x4"."""
    if name in TPUS:
        _look_for("libtpu", name)
        found = topologies.get_topology_desc(f"{name}:{shape or TPUS[name]}", "tpu")
        return Chip(name, "tpu", found.devices)
    if name not in GPUS:
        raise ValueError(f"no such chip: {name!r}; known are {', '.join(CHIPS)}")
    description = _description(_look_for("jax_plugins.xla_cuda13", name), GPUS[name])
    count = 1
    for size in shape.split("x") if shape else ():
        count *= int(size)
    found = topologies.get_topology_desc(
        name, "cuda", target_config=description, topology=f"1x1x{count}"
    )
    return Chip(name, "cuda", found.devices, _bandwidth(description), _rates(description))


def here() -> Chip:
    """The first GPU of this machine, of which XLA knows as much as of those that are elsewhere."""
    device = jax.devices()[0]
    names = [name for name, kind in GPUS.items() if kind.startswith(device.device_kind)]
    if not names:
        raise NotInstalledError(f"--here: one of {', '.join(GPUS)}; this is {device.device_kind!r}")
    (name,) = names
    description = _description(_look_for("jax_plugins.xla_cuda13", name), GPUS[name])
    return Chip(name, "cuda", [device], _bandwidth(description), _rates(description))


def _look_for(module: str, name: str) -> Path:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None or not found.submodule_search_locations:
        raise NotInstalledError(
            f"{name}: its compiler is not installed ({module.split('.')[-1]}); "
            "pip install -e '.[chips]' (for GPUs with Python 3.12 or later)"
        )
    return Path(next(iter(found.submodule_search_locations)))


def _description(plugin: Path, device: str) -> str:
    """What XLA knows of a GPU: plain text within the plugin's library."""
    with (
        (plugin / "xla_cuda_plugin.so").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library,
    ):
        name = library.find(f'device_description_str: "{device}"'.encode())
        start = library.rfind(b"gpu_device_info {", 0, name)
        if name < 0 or start < 0:
            raise NotInstalledError(f"the CUDA plugin of jaxlib {jax.__version__} has no {device}")
        return library[start : library.find(b"\0", start)].decode()


def _bandwidth(description: str) -> float:
    (found,) = re.findall(r"memory_bandwidth: (\d+)", description)
    return float(found)


def _rates(description: str) -> dict[str, float]:
    """Operations per second of the matrix units, by the dtype of the operands."""
    (cores,) = re.findall(r"core_count: (\d+)", description)
    units = description.partition("matrix_unit_description")[2]
    found = re.findall(
        r"key: (\d+)\s+value \{\s+clock_rate_ghz: ([\d.]+)\s+units_per_core: (\d+)"
        r"\s+ops_per_clock: (\d+)",
        units,
    )
    # An operation of theirs is a product and a sum.
    rates = {
        int(key): 2e9 * int(cores) * float(clock) * int(count) * int(each)
        for key, clock, count, each in found
    }
    return {dtype: rates[key] for dtype, key in _DTYPES.items() if key in rates}
