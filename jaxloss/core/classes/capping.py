"""Logits before their softmax: capped, without the classes that take no part, at a temperature."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._base import checks, elementwise, xla
from jaxloss.core.classes.axes import ClassAxes


def capped(logits: jax.Array, softcap: jax.Array | None) -> jax.Array:
    """cap tanh(logits / cap), in float32 at least; the logits as they are where the cap is None.

    -inf becomes -cap. Plain formulas, for those who differentiate the body of a loop.
    """
    if softcap is None:
        return logits
    logits = logits.astype(checks.wide(logits.dtype))
    # So large a cap changes nothing, and infinity would multiply 0.
    cap = jnp.minimum(softcap, 2.0**64).astype(logits.dtype)
    # Beyond this the tangent is 1, with slope 0, which the derivative by the cap multiplies by x.
    bound = lax.stop_gradient(32 * cap)
    return cap * jnp.tanh(elementwise.quotient(lax.clamp(-bound, logits, bound), cap))


def tempered(logits: jax.Array, temperature: jax.Array | None) -> jax.Array:
    """logits / temperature; -inf stays, and says nothing of the temperature's derivative."""
    if temperature is None:
        return logits
    logits = logits.astype(checks.wide(logits.dtype))
    is_finite = logits > -jnp.inf
    shares = elementwise.quotient(xla.filled(is_finite, logits, 0), temperature)
    return xla.filled(is_finite, shares, -jnp.inf)


def scaled(
    logits: jax.Array,
    where: jax.Array | None,
    softcap: jax.Array | None,
    temperature: jax.Array | None,
    classes: ClassAxes,
) -> jax.Array:
    """The logits widened, capped, without excluded classes, and divided by the temperature.

    Those of absent examples stay what they are, as long as no number's derivative sees them.
    """
    logits = logits.astype(checks.wide(logits.dtype))
    if where is not None and not (softcap is None and temperature is None):
        logits = jnp.where(where, logits, 0)
    logits = tempered(capped(logits, softcap), temperature)
    return jnp.where(where, logits, -jnp.inf) if classes.are_masked(where) else logits
