"""Primitives whose values and derivatives stay right at zero, at ties and at infinity.

Some are plain formulas, arranged so that automatic differentiation of them is right to every
order; others have a rule of their own. Inside `lax.scan` some versions of JAX lose a rule when one
derivative is taken inside another, and differentiate the body instead. So the functions that rules
are built on are arranged like the plain formulas.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jaxloss._base import norms, xla


def along(like: jax.Array, *terms: tuple[jax.Array, Any]) -> jax.Array:
    """Σ slope · tangent, shaped as `like`, for rules with `symbolic_zeros`.

    An argument that is not differentiated adds nothing. Numbers 0 in its place would turn an
    infinite slope into NaN, in forward mode only.
    """
    parts = [slope * dot for slope, dot in terms if not isinstance(dot, SymbolicZero)]
    return functools.reduce(operator.add, parts) if parts else jnp.zeros_like(like)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def hinge(x: jax.Array, tie: int = 1) -> jax.Array:
    """max(x, 0) with the derivative `tie` at 0, where `jnp.maximum` has 0.5. Keeps NaN."""
    return jnp.where(x < 0 if tie else x <= 0, 0, x)


@hinge.defjvp
def _hinge_jvp(tie, primals, tangents):
    (x,), (x_dot,) = primals, tangents
    return hinge(x, tie), jnp.where(x < 0 if tie else x <= 0, 0, x_dot)


@jax.custom_jvp
def lesser(x: jax.Array, y: jax.Array) -> jax.Array:
    """min(x, y); at a tie both share the gradient."""
    return jnp.minimum(x, y)


@lesser.defjvp
def _lesser_jvp(primals, tangents):
    # That of `minimum` compares each with the result, and is 0 where rounding makes none equal.
    (x, y), (x_dot, y_dot) = primals, tangents
    tie = (x_dot + y_dot) * 0.5
    return lesser(x, y), jnp.where(x < y, x_dot, jnp.where(y < x, y_dot, tie))


def masked(where: jax.Array | None, x: jax.Array, fill: float = 0) -> jax.Array:
    """x where it takes part, and a harmless number elsewhere; a scalar x stays as it is."""
    return x if where is None or where.ndim != x.ndim else jnp.where(where, x, fill)


def masked_tree(where: ArrayLike, tree: Any, fill: float) -> Any:
    """The tree, with a harmless number for examples that take no part in each of its arrays."""
    where = jnp.asarray(where)

    def leaf(x: Any) -> Any:
        shape = jnp.shape(x)
        if where.dtype != bool or where.ndim > len(shape):
            return x  # The caller refuses the mask once it has a loss for each example.
        fits = all(a in (1, b) for a, b in zip(where.shape, shape, strict=False))
        if not fits or not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
            return x
        return jnp.where(jnp.expand_dims(where, range(where.ndim, len(shape))), x, fill)

    return jax.tree.map(leaf, tree)


def silenced(weight: jax.Array, x: jax.Array) -> jax.Array:
    """x, but 0 where it is infinite and has the weight 0."""
    return xla.filled((weight != 0) | ~jnp.isinf(x), x, 0)


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


def less_log(x: jax.Array, taken: jax.Array) -> jax.Array:
    """x less a multiple of its logarithm, which an infinite x outgrows."""
    return x - jnp.minimum(taken, float(jnp.finfo(x.dtype).max))


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
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-norms.absolute(x)))


@softplus.defjvp
def _softplus_jvp(primals, tangents):
    # Piecewise, the second derivative would vanish at 0, where it is 1/4.
    (x,), (x_dot,) = primals, tangents
    return softplus(x), lax.logistic(x) * x_dot
