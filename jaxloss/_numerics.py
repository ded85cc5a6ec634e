"""Primitives whose values and derivatives stay right at zero, at ties and at infinity.

Some are plain formulas, arranged so that automatic differentiation of them is right to every
order; others have a rule of their own. Inside `lax.scan` some versions of JAX lose a rule where one
derivative is taken inside another, and differentiate the body: so what rules build upon is arranged
like the plain formulas."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

P = TypeVar("P")
T = TypeVar("T")


def along(like: jax.Array, *terms: tuple[jax.Array, Any]) -> jax.Array:
    """Σ slope · tangent, shaped as `like`, for rules with `symbolic_zeros`.

    An argument that nobody differentiates by adds nothing. As numbers its zeros would make NaN of
    an infinite slope, in forward mode only.
    """
    parts = [slope * dot for slope, dot in terms if not isinstance(dot, SymbolicZero)]
    return functools.reduce(operator.add, parts) if parts else jnp.zeros_like(like)


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


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def hinge(x: jax.Array, tie: int = 1) -> jax.Array:
    """max(x, 0) with the derivative `tie` at 0, where `jnp.maximum` has 0.5. Keeps NaN."""
    return jnp.where(x < 0 if tie else x <= 0, 0, x)


@hinge.defjvp
def _hinge_jvp(tie, primals, tangents):
    (x,), (x_dot,) = primals, tangents
    return hinge(x, tie), jnp.where(x < 0 if tie else x <= 0, 0, x_dot)


@jax.custom_jvp
def opaque(x: jax.Array) -> jax.Array:
    """x behind an operation that XLA does not look through.

    It would contract the product that made x with the sum that takes it, and so leave out its
    rounding, or gather the constant factors of two such products: 1e20 twice, which overflows.
    """
    return jnp.maximum(x, float(jnp.finfo(x.dtype).min))


@opaque.defjvp
def _opaque_jvp(primals, tangents):
    # That of `maximum` asks whether x and the greater are equal, in two readings of x.
    return opaque(*primals), tangents[0]


def again(x: jax.Array) -> jax.Array:
    """x in another expression, for a derivative whose parts the value computes as well.

    Computed twice from x they take less time than stored once and read twice; the compiler would
    recognise and store them.
    """
    return opaque(x)


@jax.custom_jvp
def lesser(x: jax.Array, y: jax.Array) -> jax.Array:
    """min(x, y), whose gradient a tie shares."""
    return jnp.minimum(x, y)


@lesser.defjvp
def _lesser_jvp(primals, tangents):
    # That of `minimum` compares each with the result, and is 0 where rounding makes none equal.
    (x, y), (x_dot, y_dot) = primals, tangents
    tie = (x_dot + y_dot) * 0.5
    return lesser(x, y), jnp.where(x < y, x_dot, jnp.where(y < x, y_dot, tie))


def where(condition: jax.Array, x: jax.Array, fill: float) -> jax.Array:
    """`jnp.where` with a number, which in the body of a loop takes no memory.

    Differentiation moves what does not change out of a `lax.scan`, and so would store the number
    in the full shape. Made of the condition it stays inside, where the compiler folds it.
    """
    return jnp.where(condition, x, (jnp.any(condition) & False).astype(x.dtype) + fill)


def kept(keep: jax.Array | None, x: jax.Array, fill: float = 0) -> jax.Array:
    """x where it is kept, and a harmless number elsewhere; one number for all places stays."""
    return x if keep is None or keep.ndim != x.ndim else jnp.where(keep, x, fill)


def nan_where(bad: jax.Array, x: jax.Array) -> jax.Array:
    """x, and NaN where it is bad.

    The NaN is made there only, as infinity times 0: `jax_debug_nans` takes a literal one, which
    `jax_disable_jit` makes an array, for a fault.
    """
    nan = jnp.where(bad, jnp.inf, 0).astype(x.dtype) * 0
    return jnp.where(bad, nan, x)


def silenced(weight: jax.Array, x: jax.Array) -> jax.Array:
    """x, but 0 where it is infinite and has the weight 0."""
    return where((weight != 0) | ~jnp.isinf(x), x, 0)


@jax.custom_jvp
def product(weight: jax.Array, x: jax.Array) -> jax.Array:
    """weight * x with 0 * inf = 0, in value and gradient."""
    return jnp.where((weight == 0) & jnp.isinf(x), 0, weight * x)


def _product_jvp(primals, tangents):
    # Autodiff would keep for the backward pass which entries are silenced.
    (weight, x), (by_weight, by_x) = primals, tangents
    weighted = product(weight, x)
    return weighted, along(weighted, (silenced(weight, x), by_weight), (weight, by_x))


product.defjvp(_product_jvp, symbolic_zeros=True)


def xlogy(x: jax.Array, y: jax.Array) -> jax.Array:
    """x log y with 0 log 0 = 0, and gradient 0 there."""
    return x * jnp.log(jnp.where((x == 0) & (y == 0), 1, y))


@jax.custom_jvp
def quotient(x: jax.Array, y: jax.Array) -> jax.Array:
    """x / y, differentiated without squaring y."""
    return x / y


def _quotient_jvp(primals, tangents):
    # The usual -x / y**2 overflows, and then gives NaN, where the quotient itself does not.
    (x, y), (x_dot, y_dot) = primals, tangents
    ratio = quotient(x, y)
    return ratio, along(ratio, (jnp.ones_like(x), x_dot), (-ratio, y_dot)) / y


quotient.defjvp(_quotient_jvp, symbolic_zeros=True)


@jax.custom_jvp
def softplus(x: jax.Array) -> jax.Array:
    """log(1 + exp(x)), accurate for both signs."""
    # maximum has derivative 1/2 and |x| has 0 at the tie: together σ(0).
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-absolute(x)))


@softplus.defjvp
def _softplus_jvp(primals, tangents):
    # Piecewise, the second derivative would vanish at 0, where it is 1/4.
    (x,), (x_dot,) = primals, tangents
    return softplus(x), lax.logistic(x) * x_dot


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
    total = jnp.where(zero, 1, jnp.sum(_power(size / scale, p), axes, keepdims=True))
    return jnp.where(zero, 0, scale * total ** (1 / p))


@_p_norm.defjvp
def _p_norm_jvp(p, axes, primals, tangents):
    # Autodiff would divide by the scale, which may be tiny, once for every derivative.
    (x,), (x_dot,) = primals, tangents
    result = _p_norm(x, p, axes)
    size = x * jnp.sign(x)
    scale, zero = _scale(size, p, axes)
    slope = _power((size / scale) / jnp.where(zero, 1, result / scale), p - 1)
    slope = jnp.where(zero, 0, jnp.sign(x) * slope)
    return result, jnp.sum(slope * x_dot, axes, keepdims=True)


def _power(x: jax.Array, p: float) -> jax.Array:
    """x**p for x >= 0, but 0 with gradient 0 for x = 0, where p < 0 would make it infinite."""
    present = x > 0
    return jnp.where(present, jnp.where(present, x, 1) ** p, x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _euclidean(x1: jax.Array, x2: jax.Array, eps: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    (x,), _ = _lengths(lambda: [x1 - x2 + eps], axes)
    return x.scale * x.length


@_euclidean.defjvp
def _euclidean_jvp(axes, primals, tangents):
    # Autodiff would keep the scaled vectors for the backward pass. They are not written as in the
    # value, or the compiler would store them for both.
    x1, x2, eps = primals
    (x,), _ = _lengths(lambda: [x1 - x2 + eps], axes)
    inverse = jnp.where(x.zero, 0, 1 / jnp.where(x.zero, 1, x.length))
    unit = ((again(x1) - x2) / x.scale + eps / x.scale) * inverse
    x_dot = tangents[0] - tangents[1] + tangents[2]
    return x.scale * x.length, jnp.sum(unit * x_dot, axes, keepdims=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def cosine(x1: jax.Array, x2: jax.Array, eps: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """x1·x2 / (max(‖x1‖, eps) max(‖x2‖, eps)) without overflow or underflow, keeping `axes`.

    0 with gradient 0 where a vector is 0.
    """
    (one, two), inner = _lengths(lambda: [x1, x2], axes)
    return inner / (_divisor(one, eps) * _divisor(two, eps))


@cosine.defjvp
def _cosine_jvp(axes, primals, tangents):
    # Autodiff would keep four arrays for the backward pass.
    x1, x2, eps = primals
    (one, two), inner = _lengths(lambda: [x1, x2], axes)
    divisor1, divisor2 = _divisor(one, eps), _divisor(two, eps)
    unit1, unit2 = x1 / one.scale / divisor1, x2 / two.scale / divisor2
    similarity = inner / (divisor1 * divisor2)

    def along(own, divisor, own_unit, other_unit, tangent):
        # A vector shorter than eps is divided by a constant.
        turning = jnp.where(own.length < eps / own.scale, 0, similarity)
        gradient = jnp.where(own.zero, 0, other_unit - turning * own_unit)
        return jnp.sum(gradient * (tangent / own.scale / divisor), axes, keepdims=True)

    along1 = along(one, divisor1, unit1, unit2, tangents[0])
    return similarity, along1 + along(two, divisor2, unit2, unit1, tangents[1])


def _divisor(x: _Length, eps: jax.Array) -> jax.Array:
    """max(‖x‖, eps) / scale, and 1 for a zero vector."""
    floor = eps / x.scale
    length = jnp.where(x.length < floor, floor, x.length)
    return jnp.where(x.zero, 1, length)


class _Length(NamedTuple):
    """‖x‖ = scale * length; the scale has no derivative."""

    scale: jax.Array
    length: jax.Array
    zero: jax.Array  # Whether the vector is 0; its length is then 0, with derivative 0.


def _lengths(
    vectors: Callable[[], list[jax.Array]], axes: tuple[int, ...]
) -> tuple[list[_Length], jax.Array]:
    """The lengths of one or two vectors, and the inner product of the first and last, scaled.

    The scales shield the squares from overflow and underflow, but to find them takes a pass over
    the memory, which is half of a norm's time on a CPU. There the plain sums tell whether scales
    are needed. The vectors are made anew in each branch, which could not be fused with what makes
    them outside.
    """

    def sums(vectors):
        squares = [jnp.sum(jnp.square(x), axes, keepdims=True) for x in vectors]
        return squares, jnp.sum(vectors[0] * vectors[-1], axes, keepdims=True)

    def shielded():
        scales = [_scale(jnp.abs(x), 2, axes)[0] for x in vectors()]
        ratios = [opaque(x / scale) for x, scale in zip(vectors(), scales, strict=True)]
        return scales, *sums(ratios)

    def adaptive():
        squares, inner = sums(vectors())
        far = 2.0 ** (int(jnp.finfo(inner.dtype).maxexp) // 3)
        # Infinite or NaN for what is 0, infinite or NaN.
        farthest = [jnp.max(lax.stop_gradient(x + 1 / x), initial=0) for x in squares]
        # Made of the squares, so that they are sharded as what the other branch gives.
        ones = [(jnp.isnan(x) | True).astype(x.dtype) for x in squares]
        needless = functools.reduce(jnp.maximum, farthest) < far
        return lax.cond(needless, lambda: (ones, squares, inner), shielded)

    def length(scale, square):
        zero = square == 0
        return _Length(scale, jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square))), zero)

    scales, squares, inner = lax.platform_dependent(cpu=adaptive, default=shielded)
    return [*map(length, scales, squares)], inner


def _scale(size: jax.Array, p: float, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """What to divide by before entries are raised to p, and where the norm is 0 instead.

    It is the largest entry (for negative p the smallest), and so much more that the powers' sum
    stays below 1 and its tangents cannot overflow; a power of two, to leave the digits alone. The
    norm does not depend on it, so it is hidden from the derivatives.
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


def linear(
    f: Callable[[P, T], jax.Array],
    transpose: Callable[[P, jax.Array], T],
    given: P,
    x: T,
    like: jax.Array,
) -> jax.Array:
    """f(given, x), shaped as `like`, for an f that is linear in x, with its transpose by hand.

    `jax.custom_derivatives.linear_call` would say it directly, but cannot be vmapped. What can be
    is a linear equation with its own solver: y - f(given, x) = 0 for a given x.
    """

    f = jax.jit(f)  # Traced once for the equation and its solver.

    def equation(both):
        x, y = both
        one = tied(jnp.ones((), like.dtype), given)
        return jax.tree.map(lambda z: z * one.astype(z.dtype), (x, y - f(given, x)))

    def solve(_, right):
        x, y = right
        return x, y + f(given, x)

    def transposed_solve(_, right):
        x, y = right
        return jax.tree.map(jnp.add, x, transpose(given, y)), y

    right = x, tied(jnp.zeros_like(like), x)
    x, y = lax.custom_linear_solve(equation, right, solve, transposed_solve)
    return tied(y, x)


def tied(value: jax.Array, to: Any) -> jax.Array:
    """The value, which now counts as depending on all numbers in `to`.

    JAX differentiates a linear equation only if all of it depends on what it differentiates.
    """
    leaves = [x for x in jax.tree.leaves(to) if jnp.issubdtype(x.dtype, jnp.floating)]
    return value + jnp.where(False, sum(jnp.sum(x) for x in leaves), 0).astype(value.dtype)


def two_sum(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x + y, and exactly what rounding took from it."""
    total = x + y
    of_y = total - x
    return total, (x - (total - of_y)) + (y - of_y)


def product_error(x: jax.Array, y: jax.Array) -> jax.Array:
    """Exactly what rounding took from x * y."""
    x_high, y_high = _upper_half(x), _upper_half(y)
    x_low, y_low = x - x_high, y - y_high
    return ((x_high * y_high - x * y) + x_high * y_low + x_low * y_high) + x_low * y_low


def _upper_half(x: jax.Array) -> jax.Array:
    """x with so few digits that the product of two such is exact."""
    info = jnp.finfo(x.dtype)
    integer = jnp.int32 if info.bits == 32 else jnp.int64
    bits = lax.bitcast_convert_type(x, integer)
    width = int(info.nmant + 1) // 2
    return lax.bitcast_convert_type((bits >> width) << width, x.dtype)


def long_sum(x: jax.Array, rest: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """The sum over the last axis, and what rounding took from it, or had taken from the terms."""

    def add(so_far, term):
        total, lost = two_sum(so_far[0], term[0])
        return total, (so_far[1] + term[1]) + lost

    taken = jnp.zeros_like(x) if rest is None else lax.stop_gradient(rest)
    value, zero = lax.stop_gradient(x), jnp.zeros((), x.dtype)
    total, taken = lax.reduce((value, taken), (zero, zero), add, (x.ndim - 1,))
    # JAX differentiates no reduction of its user's; this adds 0 with the sum's derivative.
    return total + jnp.sum(x - value, -1), taken
