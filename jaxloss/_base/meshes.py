"""What is known about the devices that arrays may be spread over."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, get_abstract_mesh, reshard

T = TypeVar("T")


def spread() -> int:
    """Among how many devices the compiler may spread an array, by the mesh in force."""
    mesh = get_abstract_mesh()
    sizes = zip(mesh.axis_sizes, mesh.axis_types, strict=True) if not mesh.empty else ()
    return math.prod(size for size, kind in sizes if kind == AxisType.Auto)


def is_local() -> bool:
    """Whether arrays here are certain to be on one device."""
    mesh = get_abstract_mesh()
    return not mesh.empty and AxisType.Auto not in mesh.axis_types


def explicit_axes(x: jax.Array) -> tuple[Any, set[str]]:
    """The mesh of an array, and those of its axes that are part of types."""
    mesh = jax.typeof(x).sharding.mesh
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return mesh, {name for name, kind in kinds if kind == AxisType.Explicit}


def named(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The names of mesh axes, of which there may be none, one or several."""
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)


def axes_of(x: jax.Array, dimension: int) -> tuple[str, ...]:
    """Over which mesh axes a dimension is spread, according to its type."""
    return named(jax.typeof(x).sharding.spec[dimension])


def are_in_force(x: jax.Array) -> bool:
    """Whether each dimension of an array may be spread over devices independently."""
    return spread() > 1 or bool(explicit_axes(x)[1])


def are_shared(arrays: Any) -> bool:
    """Whether other devices may work on another part of the same arrays."""
    return spread() > 1 or bool(of_varying(arrays))


def laid(arrays: T, mesh: Any, specs: Any) -> T:
    """The arrays, laid out as the specifications say, each of which may stand for a tree."""

    def part(spec, arrays):
        return jax.tree.map(lambda x: reshard(x, NamedSharding(mesh, spec)), arrays)

    return jax.tree.map(part, specs, arrays)


def laid_as(x: jax.Array, like: jax.Array, leading: int | None = None) -> jax.Array:
    """x, whose leading dimensions, or all, are those of `like`, spread over devices as those are.

    JAX adds an array that every device holds to one that is spread, but selects only among arrays
    that are spread alike. A dimension that is spread already stays so; if that does not fit, JAX
    says so.
    """
    mesh, explicit = explicit_axes(like)
    if not explicit:
        return x
    own = spec = [named(axes) for axes in jax.typeof(x).sharding.spec]
    for d in range(x.ndim if leading is None else leading):
        axes = axes_of(like, d)
        if x.shape[d] > 1 and not own[d] and not {*axes} & {name for part in own for name in part}:
            spec = [*spec[:d], axes, *spec[d + 1 :]]
    return x if spec == own else reshard(x, NamedSharding(mesh, PartitionSpec(*spec)))


def axes_of_rows(arrays: Any) -> tuple[jax.Array | None, tuple[str, ...]]:
    """An array that JAX knows the devices of, or None, and the axes over which rows are spread.

    The rows of all arrays belong together: the first array whose rows are spread decides.
    """
    typed = [x for x in jax.tree.leaves(arrays) if explicit_axes(x)[1]]
    if not typed:
        return None, ()
    return typed[0], next(filter(None, (axes_of(x, 0) for x in typed)), ())


def by_rows(arrays: T) -> T:
    """Arrays of the same examples, spread along these alone, if JAX knows over which devices."""
    like, axes = axes_of_rows(arrays)
    if like is None:
        return arrays
    specs = jax.tree.map(lambda _: PartitionSpec(axes or None), arrays)
    return laid(arrays, explicit_axes(like)[0], specs)


def whole(arrays: T) -> T:
    """The arrays, all of them on every device, if JAX knows of devices."""

    def spread_nowhere(x):
        mesh, explicit = explicit_axes(x)
        return reshard(x, NamedSharding(mesh, PartitionSpec())) if explicit else x

    return jax.tree.map(spread_nowhere, arrays)


def shares(x: jax.Array) -> int:
    """In how many parts the first dimension is spread over devices, according to its type."""
    mesh, _ = explicit_axes(x)
    return math.prod(mesh.shape[axis] for axis in axes_of(x, 0))


def by_device(f: Callable[..., Any], arrays: tuple, like: jax.Array, specs: Any, out: Any) -> Any:
    """f of each device's part of the arrays, over the explicit axes of the mesh of `like`."""
    mesh, explicit = explicit_axes(like)
    # Inside `jax.vmap` over a dimension that is spread, JAX alone knows which axes that leaves.
    some = explicit if explicit < {*mesh.axis_names} else frozenset()
    mapped = jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=out, axis_names=some)
    return mapped(*laid(arrays, mesh, specs))


def varying(tree: T, like: Any) -> T:
    """The tree, as varying over all devices of a `jax.shard_map` over which `like` does."""
    return varying_over(tree, of_varying(like))


def of_varying(tree: Any) -> frozenset[str]:
    """The axes of a `jax.shard_map` over whose devices any of the arrays varies, as JAX knows."""
    return frozenset().union(*(jax.typeof(x).mat.varying for x in jax.tree.leaves(tree)))


def varying_over(tree: T, axes: frozenset[str]) -> T:
    """The tree, as varying over the devices along these axes too."""

    def vary(x):
        missing = tuple(sorted(axes - jax.typeof(x).mat.varying))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(vary, tree)


def summed(x: jax.Array, like: jax.Array) -> jax.Array:
    """x, added up over the devices of a `jax.shard_map` that hold `like` alike."""
    axes = tuple(sorted(jax.typeof(x).mat.varying - jax.typeof(like).mat.varying))
    return lax.psum(x, axes) if axes else x


def agreed(x: Any, axes: tuple[str, ...]) -> Any:
    """A value that is the same on all devices along the axes, and that JAX then knows to be."""
    if x is None or not (axes := tuple(a for a in axes if a in jax.typeof(x).mat.varying)):
        return x
    if jnp.issubdtype(x.dtype, jnp.floating):
        return lax.psum(x, axes) / lax.axis_size(axes)
    number = jnp.int32 if x.dtype == bool else x.dtype
    return lax.pmax(x.astype(number), axes).astype(x.dtype)
