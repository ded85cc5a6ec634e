"""Logits before their softmax: capped, masked and divided by a temperature."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._base import checks, elementwise, xla
from jaxloss.core.classes.axes import ClassAxes


class Given(NamedTuple):
    """Logits as a caller passes them, and what is done to them; None for what is not done."""

    logits: jax.Array  # Halves are widened each time that they are read.
    where: jax.Array | None = None
    softcap: jax.Array | None = None
    temperature: jax.Array | None = None
    # Subtracted before the division: a low temperature makes infinities of all that is far from 0.
    centre: jax.Array | None = None

    def scale(self, logits: jax.Array) -> jax.Array:
        """Widens, caps and tempers these."""
        logits = capped(logits.astype(checks.wide(logits.dtype)), self.softcap)
        if self.temperature is None or self.centre is None:  # They come together.
            return logits
        if self.softcap is not None:
            # What XLA leaves unrounded of a capped peak is far from 0 once it is divided.
            logits = xla.opaque(logits)
        # The difference of the halves cannot overflow.
        return 2 * tempered(0.5 * logits - 0.5 * self.centre, self.temperature)

    def scores(self, classes: ClassAxes) -> jax.Array:
        """What the softmax is taken of, with -inf for absent classes.

        Absent examples keep what they have, as masking all logits for their sake costs a pass over
        the memory: what uses them puts 0 there. Where the cap or the temperature has a gradient,
        which all share, they are masked after all.
        """
        logits = self.logits
        if self.where is not None and not (self.softcap is None and self.temperature is None):
            logits = jnp.where(self.where, logits, 0)
        return self.masked(self.scale(logits), classes)

    def scores_again(self, scores: jax.Array, classes: ClassAxes) -> jax.Array:
        """The scores for a derivative; in another expression if they are capped.

        Of one expression XLA stores the capped logits, which the value has read as well.
        """
        if self.softcap is None:
            return scores
        logits = self.logits.astype(scores.dtype)
        return self._replace(logits=xla.recomputed(logits)).scores(classes)

    def masked(self, scores: jax.Array, classes: ClassAxes) -> jax.Array:
        """The scores without the classes that take no part."""
        if self.where is None or not classes.are_masked(self.where):
            return scores
        return jnp.where(self.where, scores, -jnp.inf)


def capped(logits: jax.Array, softcap: jax.Array | None) -> jax.Array:
    """cap tanh(logits / cap), in float32 at least; the logits as they are where the cap is None.

    -inf becomes -cap. An infinite cap changes nothing.
    """
    if softcap is None:
        return logits
    return _capped(logits.astype(checks.wide(logits.dtype)), softcap)


@jax.custom_jvp
def _capped(logits: jax.Array, softcap: jax.Array) -> jax.Array:
    cap, share = _cap_and_share(logits, softcap)
    return cap * jnp.tanh(share)


def _capped_jvp(primals, tangents):
    # Of autodiff's derivative XLA stores the tanh, which the value has computed as well.
    logits, softcap = primals
    _, share = _cap_and_share(xla.recomputed(logits), softcap)
    tanh = jnp.tanh(share)
    slope = (1 - tanh) * (1 + tanh)
    slopes = slope, tanh - share * slope
    return _capped(*primals), elementwise.along(logits, *zip(slopes, tangents, strict=True))


_capped.defjvp(_capped_jvp, symbolic_zeros=True)


def _cap_and_share(logits: jax.Array, softcap: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The cap, and logits / cap, which stay finite wherever a derivative multiplies them by 0."""
    cap = jnp.minimum(softcap, 2.0**64).astype(logits.dtype)
    bound = lax.stop_gradient(32 * cap)  # From where on tanh is 1 in every dtype.
    return cap, elementwise.quotient(lax.clamp(-bound, logits, bound), cap)


def tempered(logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """logits / temperature; -inf stays, and says nothing of the temperature's derivative.

    What is finite stays finite, to every order, so that it is 0 times a probability of 0.
    """
    return _over(logits, temperature, 1, _most(logits) / 2)


def inverse(temperature: jax.Array) -> jax.Array:
    """1 / temperature, not 0, and at most so large that there is room for sums and for products."""
    found = _over(jnp.ones_like(temperature), temperature, 1, _with_room(temperature))
    return jnp.where(found == 0, float(jnp.finfo(found.dtype).tiny), found)


def _most(x: jax.Array) -> float:
    return float(jnp.finfo(x.dtype).max)


def _with_room(x: jax.Array) -> float:
    return _most(x) / 2**16


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _over(x: jax.Array, temperature: jax.Array, power: int, most: float) -> jax.Array:
    """x / temperature**power, between ±most; -inf stays."""
    least = float(jnp.finfo(temperature.dtype).tiny)  # Of less there may be no inverse.
    temperature = jnp.where(jnp.abs(temperature) < least, least, temperature)
    none = x == -jnp.inf
    for _ in range(power):  # Clamped in between, or XLA would divide by the product, maybe 0.
        x = jnp.clip(x / temperature, -most, most)
    return jnp.where(none, -jnp.inf, x)


def _over_jvp(power, most, primals, tangents):
    # The same function with bounds of its own.
    (x, temperature), (x_dot, temperature_dot) = primals, tangents
    value, most = _over(x, temperature, power, most), _with_room(x)
    by_x = _over(jnp.ones_like(temperature), temperature, power, most)
    shares = jnp.where(x == -jnp.inf, 0, x)
    by_temperature = -power * _over(shares, temperature, power + 1, most)
    along = elementwise.along(x, (by_x, x_dot), (by_temperature, temperature_dot))
    return value, along


_over.defjvp(_over_jvp, symbolic_zeros=True)
