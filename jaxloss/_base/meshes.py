"""What is known of the devices that arrays may be spread over."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import AxisType, get_abstract_mesh


def spread() -> int:
    """Among how many devices the compiler may spread an array, by the mesh in force."""
    mesh = get_abstract_mesh()
    sizes = zip(mesh.axis_sizes, mesh.axis_types, strict=True) if not mesh.empty else ()
    return math.prod(size for size, kind in sizes if kind == AxisType.Auto)


def is_local() -> bool:
    """Whether what stands here is surely one device's."""
    mesh = get_abstract_mesh()
    return not mesh.empty and AxisType.Auto not in mesh.axis_types


def explicit_axes(x: jax.Array) -> tuple[Any, set[str]]:
    """The mesh of an array, and those of its axes that types tell of."""
    mesh = jax.typeof(x).sharding.mesh
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return mesh, {name for name, kind in kinds if kind == AxisType.Explicit}


def are_in_force(x: jax.Array) -> bool:
    """Whether the dimensions of an array may be spread over several devices each for itself."""
    return spread() > 1 or bool(explicit_axes(x)[1])
