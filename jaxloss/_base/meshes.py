"""What is known of the devices that arrays may be spread over."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, get_abstract_mesh, reshard

T = TypeVar("T")


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


def named(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The names of mesh axes, of which there may be none, one or several."""
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)


def axes_of(x: jax.Array, dimension: int) -> tuple[str, ...]:
    """Over which mesh axes a dimension is spread, by its type."""
    return named(jax.typeof(x).sharding.spec[dimension])


def are_in_force(x: jax.Array) -> bool:
    """Whether the dimensions of an array may be spread over several devices each for itself."""
    return spread() > 1 or bool(explicit_axes(x)[1])


def are_shared(arrays: Any) -> bool:
    """Whether other devices may work on another part of the same arrays."""
    return spread() > 1 or any(jax.typeof(x).mat.varying for x in jax.tree.leaves(arrays))


def laid(arrays: T, mesh: Any, specs: Any) -> T:
    """The arrays, all that stand in the place of a specification as that says."""

    def part(spec, arrays):
        return jax.tree.map(lambda x: reshard(x, NamedSharding(mesh, spec)), arrays)

    return jax.tree.map(part, specs, arrays)


def by_device(f: Callable[..., Any], arrays: tuple, like: jax.Array, specs: Any, out: Any) -> Any:
    """f of each device's part of the arrays, over the explicit axes of the mesh of `like`."""
    mesh, explicit = explicit_axes(like)
    mapped = jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=out, axis_names=explicit)
    return mapped(*laid(arrays, mesh, specs))


def varying(tree: T, like: Any) -> T:
    """The tree, as varying over all devices of a `jax.shard_map` over which `like` does."""
    axes = frozenset().union(*(jax.typeof(x).mat.varying for x in jax.tree.leaves(like)))

    def vary(x):
        missing = tuple(sorted(axes - jax.typeof(x).mat.varying))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(vary, tree)


def summed(x: jax.Array, like: jax.Array) -> jax.Array:
    """x, added up over the devices of a `jax.shard_map` that hold `like` alike."""
    axes = tuple(sorted(jax.typeof(x).mat.varying - jax.typeof(like).mat.varying))
    return lax.psum(x, axes) if axes else x


def agreed(x: Any, axes: tuple[str, ...]) -> Any:
    """What all devices along the axes hold alike, as one number that JAX knows to be."""
    if x is None or not (axes := tuple(a for a in axes if a in jax.typeof(x).mat.varying)):
        return x
    if jnp.issubdtype(x.dtype, jnp.floating):
        return lax.psum(x, axes) / lax.axis_size(axes)
    number = jnp.int32 if x.dtype == bool else x.dtype
    return lax.pmax(x.astype(number), axes).astype(x.dtype)
