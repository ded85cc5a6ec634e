"""Chips, here or not: what their compilers have to know, and how they are asked."""

from __future__ import annotations

import dataclasses
import importlib.util
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

# The smallest topologies that the compiler knows, of which one device is taken.
TPUS = {"v4": "2x2x1", "v5e": "2x2", "v5p": "2x2x1", "v6e": "2x2", "tpu7x": "2x2x1"}


class Gpu(NamedTuple):
    """A GPU, in round numbers of XLA's own description of it."""

    kind: str  # As XLA and the driver name it.
    bandwidth: float  # Bytes per second.
    halves: float  # Operations per second of the matrix units, of bfloat16 or float16.
    doubles: float  # Of float64.

    def rates(self) -> dict[str, float]:
        """Operations per second by the dtype of the operands; those of float32 in TF32."""
        of_halves = {"bf16": 1, "f16": 1, "f32": 0.5, "s8": 2, "f8e4m3fn": 2, "f8e5m2": 2}
        return {dtype: n * self.halves for dtype, n in of_halves.items()} | {"f64": self.doubles}


GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", 2.03904e12, 311.87e12, 19.49e12),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 3.35232e12, 989.17e12, 66.91e12),
    "h200": Gpu("NVIDIA H200 141GB HBM3e", 4.8e12, 989.17e12, 66.91e12),
    "b200": Gpu("NVIDIA B200", 7.67232e12, 2225.16e12, 37.22e12),
    "gb200": Gpu("NVIDIA GB200", 7.92806e12, 2398.11e12, 40.12e12),
}
CHIPS = (*TPUS, *GPUS)


@dataclasses.dataclass(frozen=True, eq=False)
class Chip:
    """Devices to compile for."""

    name: str
    platform: str  # As JAX lowers for it.
    devices: Sequence[Any]
    gpu: Gpu | None = None

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
    description = _description(_look_for("jax_plugins.xla_cuda13", name), GPUS[name].kind)
    count = 1
    for size in shape.split("x") if shape else ():
        count *= int(size)
    found = topologies.get_topology_desc(
        name, "cuda", target_config=description, topology=f"1x1x{count}"
    )
    return Chip(name, "cuda", found.devices, GPUS[name])


def here() -> Chip:
    """The first GPU of this machine."""
    device = jax.devices()[0]
    kind = device.device_kind
    names = [name for name, gpu in GPUS.items() if gpu.kind.startswith(kind)]
    if not names:
        known = ", ".join(GPUS)
        raise NotInstalledError(f"--here: takes one of {known}; the first device is a {kind!r}")
    (name,) = names
    return Chip(name, "cuda", [device], GPUS[name])


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
