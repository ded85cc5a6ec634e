"""A linear map that brings its own transpose, as a primitive of JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec, reshard

Map = Callable[[Any, Any], Any]  # Of what is given and of what it is linear in.

# Its operands: what the map and its transpose have closed over, what is given, and what the map is
# linear in. `sizes` counts the first three.
linear_map_p = Primitive("linear_map")
linear_map_p.multiple_results = True


def linear_map(f: Map, transpose: Map, given: Any, x: Any, like: Any) -> Any:
    """f(given, x), transposed by transpose(given, y) for a y that is like the result."""
    (known, tree_known), (leaves, tree) = jax.tree.flatten(given), jax.tree.flatten(x)
    wanted, tree_wanted = jax.tree.flatten(like)

    def of_leaves(f, tree, leaves):
        def flat(known, leaves):
            return jax.tree.leaves(f(tree_known.unflatten(known), tree.unflatten(leaves)))

        return jax.make_jaxpr(flat)(known, leaves)

    there, back = of_leaves(f, tree, leaves), of_leaves(transpose, tree_wanted, wanted)
    found = linear_map_p.bind(
        *there.consts,
        *back.consts,
        *known,
        *leaves,
        there=there.jaxpr,
        back=back.jaxpr,
        sizes=(len(there.consts), len(back.consts), len(known)),
    )
    return tree_wanted.unflatten(found)


def _parts(operands, sizes):
    first, second, third = sizes
    ends = first, first + second, first + second + third
    return (
        operands[: ends[0]],
        operands[ends[0] : ends[1]],
        operands[ends[1] : ends[2]],
        operands[ends[2] :],
    )


@linear_map_p.def_impl
def _result(*operands, there, back, sizes):
    closed_over, _, given, x = _parts(operands, sizes)
    return jaxpr_as_fun(ClosedJaxpr(there, closed_over))(*given, *x)


@linear_map_p.def_abstract_eval
def _types(*operands, there, back, sizes):
    return [v.aval for v in there.outvars]


mlir.register_lowering(linear_map_p, mlir.lower_fun(_result, multiple_results=True))


def _jvp(primals, tangents, **maps):
    found, fixed = linear_map_p.bind(*primals, **maps), sum(maps["sizes"])
    known, x = primals[:fixed], primals[fixed:]
    dots = []
    if any(type(dot) is not ad.Zero for dot in tangents[fixed:]):
        dots.append(linear_map_p.bind(*known, *map(ad.instantiate_zeros, tangents[fixed:]), **maps))
    moving = {i: dot for i, dot in enumerate(tangents[:fixed]) if type(dot) is not ad.Zero}
    if moving:
        # Of what is given it is differentiated as JAX would.
        def of_moving(*some):
            operands = dict(enumerate(known)) | dict(zip(moving, some, strict=True))
            return _result(*operands.values(), *x, **maps)

        own = tuple(known[i] for i in moving)
        dots.append(jax.jvp(of_moving, own, tuple(moving.values()))[1])
    if not dots:
        return found, [ad.Zero(jax.typeof(y).to_tangent_aval()) for y in found]
    return found, [sum(parts[1:], parts[0]) for parts in zip(*dots, strict=True)]


ad.primitive_jvps[linear_map_p] = _jvp


def _transpose(cotangents, *operands, there, back, sizes):
    first, second, given, x = _parts(operands, sizes)
    found = linear_map_p.bind(
        *second,
        *first,
        *given,
        *map(ad.instantiate_zeros, cotangents),
        there=back,
        back=there,
        sizes=(len(second), len(first), len(given)),
    )
    # What is known here is the zero of a tangent.
    own = [z if ad.is_undefined_primal(y) else None for y, z in zip(x, found, strict=True)]
    return [None] * sum(sizes) + own


ad.primitive_transposes[linear_map_p] = _transpose


def _zeros(shape, like):
    axes = tuple(sorted(like.mat.varying))
    zeros = jnp.zeros(shape, like.dtype)
    return lax.pcast(zeros, axes, to="varying") if axes else zeros


def _spread(x, axis):
    """As the dimension of a vmap, the first one, is spread over devices."""
    if axis.explicit_mesh_axis is None:
        return x
    sharding = jax.typeof(x).sharding
    spec = PartitionSpec(axis.explicit_mesh_axis, *sharding.spec[1:])
    return reshard(x, NamedSharding(sharding.mesh, spec))


def _batched(axis, operands, dims, *, there, back, sizes):
    effects = *there.effects, *back.effects
    named = any(getattr(effect, "name", None) == axis.name for effect in effects)
    if not named and all(dim is None for dim in dims):
        found = linear_map_p.bind(*operands, there=there, back=back, sizes=sizes)
        return found, [None] * len(found)
    *fixed, x = _parts(operands, sizes)
    *fixed_dims, x_dims = _parts(dims, sizes)
    known = [y for part in fixed for y in part]
    x = [
        _spread(jnp.broadcast_to(y, (axis.size, *y.shape)), axis)
        if dim is None
        else jnp.moveaxis(y, dim, 0)
        for y, dim in zip(x, x_dims, strict=True)
    ]

    def mapped(jaxpr, which):
        def f(closed_over, given, x):
            return jaxpr_as_fun(ClosedJaxpr(jaxpr, closed_over))(*given, *x)

        f = jax.vmap(
            f,
            (tuple(fixed_dims[which]), tuple(fixed_dims[2]), 0),
            axis_name=axis.name,
            axis_size=axis.size,
            spmd_axis_name=axis.spmd_name,
        )

        def of_known(known, x):
            parts = _parts(known, sizes)
            return f(tuple(parts[which]), tuple(parts[2]), tuple(x))

        return of_known

    like = [_spread(_zeros((axis.size, *v.aval.shape), v.aval), axis) for v in there.outvars]
    found = linear_map(mapped(there, 0), mapped(back, 1), known, x, like)
    return found, [0] * len(found)


batching.fancy_primitive_batchers[linear_map_p] = _batched
