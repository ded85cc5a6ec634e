"""A value together with conditions that only checkify looks at, as a primitive of JAX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax._src.checkify import checkify_jaxpr, error_checks
from jax.experimental import checkify
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

# Its operands: a value, and a condition for each message.
checked_p = Primitive("checked")


def checked(value: Any, holds: Sequence[Any], messages: tuple[str, ...]) -> Any:
    """The value as it is."""
    return checked_p.bind(value, *holds, messages=messages)


@checked_p.def_impl
@checked_p.def_abstract_eval
def _value(value, *holds, messages):
    return value


def _jvp(primals, tangents, *, messages):
    return checked_p.bind(*primals, messages=messages), tangents[0]


def _batched(operands, dims, *, messages):
    return checked_p.bind(*operands, messages=messages), dims[0]


def _checkified(*operands, messages):
    # What checkify adds stands in front: newer versions of JAX add one more.
    own = len(operands) - len(messages)
    *context, error, enabled, value = operands[:own]
    holds = operands[own:]

    def check(*holds):
        for condition, message in zip(holds, messages, strict=True):
            checkify.debug_check(jnp.all(condition), message)

    error, _ = checkify_jaxpr(*context, jax.make_jaxpr(check)(*holds), enabled, error, *holds)
    return error, value


ad.primitive_jvps[checked_p] = _jvp
batching.primitive_batchers[checked_p] = _batched
mlir.register_lowering(checked_p, mlir.lower_fun(_value, multiple_results=False))
error_checks[checked_p] = _checkified
