"""p-norms and cosines without overflow or underflow, with gradient 0 at 0."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxloss._base import meshes, xla


def absolute(x: jax.Array) -> jax.Array:
    """|x| with derivative 0 at 0, where `jnp.abs` has 1."""
    if jnp.iscomplexobj(x):
        nothing = jnp.zeros((), x.real.dtype)
        return jnp.squeeze(_euclidean(jnp.stack([x.real, x.imag]), nothing, nothing, (0,)), 0)
    return _absolute(x)


@jax.custom_jvp
def _absolute(x: jax.Array) -> jax.Array:
    return jnp.abs(x)


@_absolute.defjvp
def _absolute_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    return _absolute(x), jnp.sign(x) * x_dot


def distance(
    x1: jax.Array, x2: jax.Array, eps: jax.Array, p: float, axes: tuple[int, ...]
) -> jax.Array:
    """The p-norm of x1 - x2 + eps over `axes`, which are kept.

    Free of overflow and underflow, with gradient 0 at 0 for every p.
    """
    if p == 2:
        return _euclidean(x1, x2, eps, axes)
    x = x1 - x2 + eps
    size = absolute(x)
    if p == 0:
        return jnp.sum((x != 0).astype(x.dtype), axes, keepdims=True)
    if p == 1:
        return jnp.sum(size, axes, keepdims=True)
    if p == jnp.inf:
        return _extreme(size, axes, 1)
    if p == -jnp.inf:
        return _extreme(size, axes, -1)
    return _p_norm(x, p, axes)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _extreme(size: jax.Array, axes: tuple[int, ...], sign: int) -> jax.Array:
    """The largest size over `axes`, or the smallest for `sign` -1; ties share the gradient."""
    if sign < 0:
        return jnp.min(size, axes, keepdims=True, initial=jnp.inf)
    return jnp.max(size, axes, keepdims=True, initial=0)


@_extreme.defjvp
def _extreme_jvp(axes, sign, primals, tangents):
    # Autodiff divides by how many equal the result, which rounding can make none. One index is
    # always found.
    (size,), (tangent,) = primals, tangents
    for axis in axes if size.size else ():
        extreme = _extreme(size, (axis,), sign)
        index = (jnp.argmax if sign > 0 else jnp.argmin)(size, axis, keepdims=True)
        best = (size == extreme) | (lax.broadcasted_iota(index.dtype, size.shape, axis) == index)
        best = best.astype(size.dtype)
        share = best / jnp.sum(best, axis, keepdims=True)
        size, tangent = extreme, jnp.sum(share * tangent, axis, keepdims=True)
    return _extreme(*primals, axes, sign), jnp.sum(tangent, axes, keepdims=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _p_norm(x: jax.Array, p: float, axes: tuple[int, ...]) -> jax.Array:
    size = x * jnp.sign(x)
    scale, zero = _scale(size, p, axes)
    ratio = jnp.where(zero, 0, size / scale)  # Beside a 0 the power of tiny ones would be infinite.
    total = jnp.where(zero, 1, jnp.sum(_power(ratio, p), axes, keepdims=True))
    return jnp.where(zero, 0, scale * total ** (1 / p))


@_p_norm.defjvp
def _p_norm_jvp(p, axes, primals, tangents):
    # Autodiff would divide by the scale, which may be tiny, once for every derivative.
    (x,), (x_dot,) = primals, tangents
    result = _p_norm(x, p, axes)
    size = x * jnp.sign(x)
    scale, zero = _scale(size, p, axes)
    ratio = (size / scale) / jnp.where(zero, 1, result / scale)
    slope = jnp.sign(x) * _power(jnp.where(zero, 0, ratio), p - 1)
    return result, jnp.sum(slope * x_dot, axes, keepdims=True)


def _power(x: jax.Array, p: float) -> jax.Array:
    """x**p for x >= 0, but 0 with gradient 0 for x = 0, where p < 0 would make it infinite."""
    present = x > 0
    return jnp.where(present, jnp.where(present, x, 1) ** p, x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _euclidean(x1: jax.Array, x2: jax.Array, eps: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    (x,), _ = _lengths(_shifted_difference, (x1, x2, eps), axes)
    return jnp.expand_dims(x.scale * x.length, axes)


@_euclidean.defjvp
def _euclidean_jvp(axes, primals, tangents):
    # Autodiff would keep the scaled vectors for the backward pass. They are not written as in the
    # value, or the compiler would store them for both.
    x1, x2, eps = primals
    (x,), _ = _lengths(_shifted_difference, (x1, x2, eps), axes)
    inverse = jnp.where(x.zero, 0, 1 / jnp.where(x.zero, 1, x.length))
    numbers = x.scale, inverse, x.scale * x.length
    scale, inverse, distance = (jnp.expand_dims(number, axes) for number in numbers)
    unit = ((xla.recomputed(x1) - x2) / scale + eps / scale) * inverse
    x_dot = tangents[0] - tangents[1] + tangents[2]
    return distance, jnp.sum(unit * x_dot, axes, keepdims=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def cosine(x1: jax.Array, x2: jax.Array, eps: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """x1·x2 / (max(‖x1‖, eps) max(‖x2‖, eps)) without overflow or underflow, keeping `axes`.

    0 with gradient 0 where a vector is 0. The eps is one number, or one for each pair, without
    `axes`.
    """
    (one, two), inner = _lengths(_as_given, (x1, x2), axes)
    return jnp.expand_dims(inner / (_divisor(one, eps) * _divisor(two, eps)), axes)


def _cosine_jvp(axes, primals, tangents):
    # Autodiff would keep four arrays for the backward pass.
    return _cosine_and_along(primals, tangents, axes)


cosine.defjvp(_cosine_jvp, symbolic_zeros=True)


def _cosine_and_along(primals, tangents, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """`cosine` and its derivative along the tangents."""
    expand = functools.partial(jnp.expand_dims, axis=axes)
    x1, x2, eps = primals
    (one, two), inner = _lengths(_as_given, (x1, x2), axes)
    divisor1, divisor2 = _divisor(one, eps), _divisor(two, eps)
    unit1, unit2 = _over(x1, one, divisor1, axes), _over(x2, two, divisor2, axes)
    similarity = inner / (divisor1 * divisor2)

    def along(own, divisor, own_unit, other_unit, tangent):
        # A vector shorter than eps is divided by that, which has its own tangent.
        short = own.length < eps / own.scale
        parts = jnp.zeros_like(similarity)
        if not isinstance(tangent, SymbolicZero):
            turning = expand(jnp.where(short, 0, similarity))
            gradient = jnp.where(expand(own.zero), 0, other_unit - turning * own_unit)
            parts = parts + jnp.sum(gradient * _over(tangent, own, divisor, axes), axes)
        if not isinstance(tangents[2], SymbolicZero):
            shrinking = jnp.where(short & ~own.zero, similarity, 0)
            parts = parts - shrinking * (tangents[2] / own.scale / divisor)
        return parts

    along1 = along(one, divisor1, unit1, unit2, tangents[0])
    along2 = along(two, divisor2, unit2, unit1, tangents[1])
    return expand(similarity), expand(along1 + along2)


def _divisor(x: _Length, eps: jax.Array) -> jax.Array:
    """max(‖x‖, eps) / scale, and 1 for a zero vector."""
    floor = eps / x.scale
    length = jnp.where(x.length < floor, floor, x.length)
    return jnp.where(x.zero, 1, length)


def _over(vectors: jax.Array, x: _Length, divisor: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The vectors divided by the scale and the divisor of x, one after the other."""
    return vectors / jnp.expand_dims(x.scale, axes) / jnp.expand_dims(divisor, axes)


class _Length(NamedTuple):
    """‖x‖ = scale * length; the scale has no derivative.

    Without the axes of the vectors, as a CPU wants numbers of one for each vector: see `xla`.
    """

    scale: jax.Array
    length: jax.Array
    zero: jax.Array  # Whether the vector is 0; its length is then 0, with derivative 0.


def _as_given(_: Callable, *vectors: jax.Array) -> list[jax.Array]:
    return [*vectors]


def _shifted_difference(
    minus: Callable, x1: jax.Array, x2: jax.Array, eps: jax.Array
) -> list[jax.Array]:
    return [minus(x1, x2) + eps]


def _lengths(
    vectors: Callable[..., list[jax.Array]], operands: tuple[jax.Array, ...], axes: tuple[int, ...]
) -> tuple[list[_Length], jax.Array]:
    """The lengths of one or two vectors, and the inner product of the first and last, scaled.

    The scales protect the squares from overflow and underflow, but finding them takes a pass over
    the memory, which is half of a norm's time on a CPU. There the plain sums tell whether scales
    are needed; elsewhere `_sums_at_once` finds all in one pass. Given a way to subtract and its
    operands, each branch makes the vectors anew, since a branch cannot be fused with what makes
    them outside.
    """
    # `jax.vmap` fails on a branch that itself tells JAX over which devices something varies.
    operands = meshes.varying(operands, operands)

    def by(minus):
        return vectors(minus, *operands)

    def sums(of):
        squares = [jnp.sum(jnp.square(x), axes) for x in of]
        return squares, jnp.sum(of[0] * of[-1], axes)

    def made():
        return by(jnp.subtract)

    def shielded():
        scales = [_scale(jnp.abs(x), 2, axes)[0] for x in made()]
        ratios = [xla.opaque(x / scale) for x, scale in zip(made(), scales, strict=True)]
        return [jnp.squeeze(x, axes) for x in scales], *sums(ratios)

    def plain():
        squares, inner = sums(made())
        far = 2.0 ** (int(jnp.finfo(inner.dtype).maxexp) // 3)
        # Infinite or NaN for what is 0, infinite or NaN.
        farthest = [jnp.max(lax.stop_gradient(x + 1 / x), initial=0) for x in squares]
        ones = [jnp.ones_like(x) for x in squares]
        return functools.reduce(jnp.maximum, farthest) < far, (ones, squares, inner)

    def length(scale, square):
        zero = square == 0
        return _Length(scale, jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square))), zero)

    def at_once():
        return jax.tree.map(lambda x: jnp.squeeze(x, axes), _sums_at_once(by, axes))

    scales, squares, inner = xla.shortcut(plain, shielded, at_once)
    return [*map(length, scales, squares)], inner


def _sums_at_once(
    vectors: Callable[[Callable], list[jax.Array]], axes: tuple[int, ...]
) -> tuple[list[jax.Array], list[jax.Array], jax.Array]:
    """Scales of one or two vectors, the sums of their squares and their inner product, scaled.

    Nothing overflows or vanishes, though the vectors are read only once: there are three sums, of
    entries as they are, multiplied by a large number and divided by it, one of which is in range.
    """
    # Three readings of a difference make XLA for a GPU store it.
    x, again = vectors(jnp.subtract), vectors(xla.recomputed_difference)
    dtype = x[0].dtype
    bits, most = int(jnp.finfo(dtype).maxexp) // 8, jnp.finfo(dtype).max
    root = 2.0 ** (5 * bits // 2)
    large = root * root

    def scaled(x, factor):
        # Finite, or the derivative of a sum that is not chosen would be 0 times infinity. Nor may
        # XLA gather the two factors, whose product is out of range.
        return lax.clamp(-most, x * factor, most)

    def sums(i, j):
        """Those of the products of two vectors: multiplied, as they are, divided."""
        multiplied = scaled(x[i], large) * scaled(x[j], large)
        divided = scaled(again[i], 1 / large) * scaled(again[j], 1 / large)
        multiplied, divided = xla.sums_at_once((multiplied, divided), axes)
        return multiplied, jnp.sum(x[i] * x[j], axes, keepdims=True), divided

    def chosen(is_small, is_ordinary, of):
        return jnp.where(is_small, of[0], jnp.where(is_ordinary, of[1], of[2]))

    def factor(is_small, is_ordinary):
        """The root of what entries were multiplied by: what it is itself may be out of range."""
        return chosen(is_small, is_ordinary, (root, 1, 1 / root)).astype(dtype)

    def within(x, bound):
        return lax.stop_gradient(jnp.abs(x)) < bound

    places = range(len(x))
    squares = [sums(i, i) for i in places]
    # Far below what overflows: for short vectors the derivative of a sum is larger than the sum.
    bounds = 2.0 ** (5 * bits), 2.0 ** (6 * bits)
    sizes = [[*map(within, three[:2], bounds)] for three in squares]
    factors = [factor(*size) for size in sizes]
    lengths = [chosen(size[0], size[1], three) for size, three in zip(sizes, squares, strict=True)]
    # What derivatives divide by has to be near 1, a power of two to leave the digits alone.
    roots = [jnp.sqrt(lax.stop_gradient(x)) for x in lengths]
    units = [lax.reduce_precision(x, jnp.finfo(dtype).nexp, 0) for x in roots]
    scales = [
        jnp.where(x == 0, 1, jnp.minimum(unit / (f * f), most / 16))
        for x, unit, f in zip(lengths, units, factors, strict=True)
    ]
    units = [scale * f * f for scale, f in zip(scales, factors, strict=True)]
    lengths = [x / unit / unit for x, unit in zip(lengths, units, strict=True)]
    scales = [*map(lax.stop_gradient, scales)]
    if len(x) == 1:
        return scales, lengths, lengths[0]
    products = sums(0, 1)
    # The lengths tell whether the multiplied product is needed, for it does not do so itself: where
    # it is 0, of vectors at right angles, its derivative may be out of range all the same.
    both = roots[0] / (factors[0] * factors[0]) * (roots[1] / (factors[1] * factors[1]))
    tiny = (both < 2.0 ** (-11 * bits // 2)) & (roots[0] > 0) & (roots[1] > 0)
    # Beside a vector so large that its multiplied entries are clamped the sum would be another.
    clear = [within(three[1], 2.0 ** (5 * bits)) for three in squares]
    small, ordinary = tiny & clear[0] & clear[1], within(products[1], jnp.inf)
    rest = factors[0] * factors[1] / jnp.square(factor(small, ordinary))
    inner = chosen(small, ordinary, products) * rest * rest
    return scales, lengths, inner / units[0] / units[1]


def _scale(size: jax.Array, p: float, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """What to divide by before entries are raised to p, and where the norm is 0 instead.

    It is the largest entry (for negative p the smallest), times enough to keep the sum of powers
    below 1 and its tangents from overflowing; a power of two, to leave the digits alone. The norm
    does not depend on it, so it is hidden from the derivatives.
    """
    if p < 0:
        extreme = jnp.min(size, axes, keepdims=True, initial=jnp.inf)
    else:
        extreme = jnp.max(size, axes, keepdims=True, initial=0)
        count = math.prod(size.shape[a] for a in axes)
        wanted = math.ceil(math.log2(max(count, 1)) / p)
        # For p so small that this is less the norm overflows anyway.
        extreme = extreme * 2.0 ** min(wanted, int(jnp.finfo(size.dtype).maxexp) // 2)
    zero = extreme == 0
    most = float(jnp.finfo(size.dtype).max) / 16  # The reciprocal of more would be flushed to 0.
    scale = jnp.where(zero, 1, jnp.minimum(extreme, most))
    return lax.stop_gradient(scale), zero


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def cosine_distance(
    x1: jax.Array, x2: jax.Array, eps: jax.Array, axes: tuple[int, ...]
) -> jax.Array:
    """1 - `cosine` without the cancellation of almost parallel vectors.

    It is half the squared distance of the unit vectors. Where eps keeps a vector shorter than 1,
    half of what its squared length lacks to 1 is added.
    """
    (one, two), _ = _lengths(_as_given, (x1, x2), axes)
    divisor1, divisor2 = _divisor(one, eps), _divisor(two, eps)
    apart = _over(xla.recomputed(x1), one, divisor1, axes)
    apart = apart - _over(xla.recomputed(x2), two, divisor2, axes)
    lacking = _lacking(one, divisor1) + _lacking(two, divisor2)
    return jnp.expand_dims(0.5 * (jnp.sum(jnp.square(apart), axes) + lacking), axes)


def _lacking(x: _Length, divisor: jax.Array) -> jax.Array:
    """1 - ‖x‖² / divisor²"""
    return jnp.where(x.length < divisor, 1 - jnp.square(x.length / divisor), 0)


def _cosine_distance_jvp(axes, primals, tangents):
    # Autodiff would keep the unit vectors and reach into the branches of `_lengths`.
    return cosine_distance(*primals, axes), -_cosine_and_along(primals, tangents, axes)[1]


cosine_distance.defjvp(_cosine_distance_jvp, symbolic_zeros=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def unit(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """x / ‖x‖ without overflow or underflow; 0 with gradient 0 for 0."""
    (length,), _ = _lengths(_as_given, (x,), axes)
    return _over(x, length, _divisor(length, jnp.zeros((), x.dtype)), axes)


@unit.defjvp
def _unit_jvp(axes, primals, tangents):
    (x,), (x_dot,) = primals, tangents
    (length,), _ = _lengths(_as_given, (x,), axes)
    direction = unit(x, axes)
    x_dot = _over(x_dot, length, _divisor(length, jnp.zeros((), x.dtype)), axes)
    turning = x_dot - direction * jnp.sum(direction * x_dot, axes, keepdims=True)
    return direction, jnp.where(jnp.expand_dims(length.zero, axes), 0, turning)
