"""Positive numbers of any magnitude, for products of thousands of probabilities.

Each is a mantissa and an integer exponent of two. Logarithms of such products grow to 1e4, where
float32 has three digits left after the point; mantissas keep all of theirs.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._base import exact

# ln 2 in two parts. The first has so few bits that its product with any exponent is exact.
_LN2_HIGH = 0.6875
_LN2_LOW = math.log(2) - _LN2_HIGH


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scaled:
    """(mantissa + rest) · 2**exponent, elementwise; 0 has the exponent -inf.

    Derivatives are those of the mantissas, since exponents are constant almost everywhere. The
    mantissa may drift away from 1 for a few operations: `normalized` brings it back. The rest is
    what rounding has taken from the mantissa in sums, and in products with another that has one;
    where it is None, nobody asked.
    """

    mantissa: jax.Array
    exponent: jax.Array
    rest: jax.Array | None = None

    def __getitem__(self, index: Any) -> Scaled:
        return jax.tree.map(lambda x: x[index], self)

    def __mul__(self, other: Scaled) -> Scaled:
        mantissa, rest = self.mantissa * other.mantissa, None
        if self.rest is not None:
            rest = self.rest * other.mantissa
            if other.rest is not None:
                rest = rest + self.mantissa * other.rest
                rest = rest + exact.product_error(self.mantissa, other.mantissa)
        return Scaled(mantissa, self.exponent + other.exponent, rest)

    def followed(self) -> Scaled:
        """The same number, taken as exact, with its rest followed from here on."""
        return dataclasses.replace(self, rest=jnp.zeros_like(self.mantissa))

    def unfollowed(self) -> Scaled:
        return dataclasses.replace(self, rest=None)

    def normalized(self) -> Scaled:
        """The same numbers with mantissas in [1, 2)."""
        exponent, reciprocal = _exponent_bits(self.mantissa)
        # Of 0 it would be 2**127, and its product with another such in a derivative infinite.
        reciprocal = jnp.where(self.mantissa == 0, 1, reciprocal)
        return self._times(reciprocal, self.exponent + exponent)

    def sum(self) -> Scaled:
        """The sum over the last axis, which is kept with size 1."""
        top = jnp.max(self.exponent, -1, keepdims=True, initial=_lowest(self.exponent))
        terms = self._shifted_to(top)
        mantissa, rest = exact.long_sum(terms.mantissa, terms.rest)
        return Scaled(mantissa[..., None], top, rest[..., None])

    def shifted(self, exponent: ArrayLike) -> Scaled:
        """The product with 2**exponent; 0 where that is -inf."""
        return dataclasses.replace(self, exponent=self.exponent + exponent)

    def mantissa_at(self, exponent: jax.Array) -> jax.Array:
        """The mantissa that goes with another exponent."""
        return self._shifted_to(exponent).mantissa

    def log_parts(self) -> tuple[jax.Array, jax.Array]:
        """The logarithm as a large part free of rounding and a small one; both 0 for 0."""
        nothing = self.mantissa == 0
        exponent = jnp.where(nothing, 0, self.exponent)
        mantissa = jnp.where(nothing, 1, self.mantissa)
        small = jnp.log(mantissa)
        if self.rest is not None:
            small = small + jnp.log1p(self.rest / mantissa)
        return exponent * _LN2_HIGH, exponent * _LN2_LOW + small

    def _shifted_to(self, exponent: jax.Array) -> Scaled:
        return self._times(_power_of_two(self.exponent - exponent), exponent)

    def _times(self, power_of_two: jax.Array, exponent: jax.Array) -> Scaled:
        rest = None if self.rest is None else self.rest * power_of_two
        return Scaled(self.mantissa * power_of_two, exponent, rest)


def exp(x: jax.Array) -> Scaled:
    """e**x, the mantissa in (1/2, 1]; exactly 1 at x = 0."""
    nothing = x == -jnp.inf
    x = jnp.where(nothing, 0, x)
    exponent = jnp.ceil(x * (1 / math.log(2)))
    rest = lax.stop_gradient((x - exponent * _LN2_HIGH) - exponent * _LN2_LOW)
    # Where x is so large that its own spacing exceeds ln 2, the rest would be noise of any size.
    rest = jnp.clip(rest, -0.7, 0) + (x - lax.stop_gradient(x))
    return Scaled(jnp.exp(rest), jnp.where(nothing, -jnp.inf, exponent))


def exp_of_sum(x: jax.Array, y: jax.Array) -> Scaled:
    """e**(x + y), finite y, with the rest that rounding takes from the mantissa.

    The sum is never rounded, and what the mantissa lacks is found from its logarithm: the error of
    a product of thousands of these is relative to the logarithm of the product.
    """
    nothing = x == -jnp.inf
    x = jnp.where(nothing, 0, x)
    exponent = lax.stop_gradient(jnp.ceil((x + y) * (1 / math.log(2))))
    small = ((x - exponent * _LN2_HIGH) + y) - exponent * _LN2_LOW
    # Where x is so large that its own spacing exceeds ln 2, this would be noise of any size.
    small = jnp.clip(lax.stop_gradient(small), -1, 0.5) + (small - lax.stop_gradient(small))
    mantissa = jnp.exp(small)
    # Less 1 is exact. `expm1` would say it at once, but that of XLA is too small on a CPU by 1e-7.
    rest = lax.stop_gradient(mantissa * (small - jnp.log1p(mantissa - 1)))
    return Scaled(mantissa, jnp.where(nothing, -jnp.inf, exponent), rest)


def exponents(condition: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The exponents of 1, where the condition holds, and of 0."""
    return jnp.where(condition, 0.0, -jnp.inf).astype(dtype)


def starts(last: jax.Array, places: int, dtype: jnp.dtype) -> Scaled:
    """Where paths start, (2, B, places): at 0 ahead, at `last`, (B,), in the other direction."""
    # JAX cannot stack rows of which `jax.vmap` maps some, if these are spread over a mesh.
    place = jnp.arange(2, dtype=last.dtype)[:, None, None] * last[None, :, None]
    here = lax.broadcasted_iota(last.dtype, (1, 1, places), 2) == place
    return Scaled(here.astype(dtype), exponents(here, dtype))


def pad(x: Scaled, count: int) -> Scaled:
    """Zeros in front, in the last axis."""

    def front(leaf, fill):
        width = [(0, 0, 0)] * (leaf.ndim - 1) + [(count, 0, 0)]
        return lax.pad(leaf, jnp.asarray(fill, leaf.dtype), width)

    rest = None if x.rest is None else front(x.rest, 0)
    return Scaled(front(x.mantissa, 0), front(x.exponent, -jnp.inf), rest)


def add(*terms: Scaled) -> Scaled:
    top = terms[0].exponent
    for term in terms[1:]:
        top = _greater(top, term.exponent)
    top = _greater(top, _lowest(top))  # Finite, so that 0 + 0 is 0.
    first, *others = (term._shifted_to(top) for term in terms)
    mantissa, rest = first.mantissa, first.rest
    for term in others:
        if rest is None or term.rest is None:
            mantissa, rest = mantissa + term.mantissa, None
        else:
            mantissa, lost = exact.two_sum(mantissa, term.mantissa)
            rest = rest + term.rest + lost
    return Scaled(mantissa, top, rest)


def _lowest(like: jax.Array) -> float:
    return float(jnp.finfo(like.dtype).min)


def _greater(x: jax.Array, y: ArrayLike) -> jax.Array:
    """The greater of two exponents: an instruction, where `maximum` takes three to keep NaN."""
    return jnp.where(x > y, x, y)


def _power_of_two(exponent: jax.Array) -> jax.Array:
    """2**exponent for a whole exponent, 0 below the smallest normal number."""
    bias, width, integer = _layout(exponent.dtype)
    exponent = _greater(exponent, -bias)
    exponent = jnp.where(exponent < bias, exponent, bias)
    # The sum has the biased exponent in its last bits, and is faster than a conversion.
    bits = lax.bitcast_convert_type(exponent + (1.5 * 2**width + bias), integer)
    return lax.bitcast_convert_type(bits << width, exponent.dtype)


def _exponent_bits(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The whole part of log2(x), and 2 to its negative."""
    bias, width, integer = _layout(x.dtype)
    bits = lax.bitcast_convert_type(x, integer) >> width
    reciprocal = lax.bitcast_convert_type((2 * bias - bits) << width, x.dtype)
    return (bits - bias).astype(x.dtype), reciprocal


def _layout(dtype: jnp.dtype) -> tuple[int, int, Any]:
    """The bias of the exponent, its distance from the right, and the integer of the same size."""
    info = jnp.finfo(dtype)
    return int(info.maxexp) - 1, int(info.nmant), jnp.int32 if info.bits == 32 else jnp.int64
