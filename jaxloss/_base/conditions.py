"""Values together with conditions that only checkify looks at, as a primitive of JAX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax._src.checkify import checkify_jaxpr, error_checks
from jax.experimental import checkify
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

# Its operands: the values, of which there are `count`, and a condition for each message.
checked_p = Primitive("checked")
checked_p.multiple_results = True


def checked(values: Sequence[Any], holds: Sequence[Any], messages: tuple[str, ...]) -> list[Any]:
    """The values as they are."""
    return checked_p.bind(*values, *holds, count=len(values), messages=messages)


@checked_p.def_impl
@checked_p.def_abstract_eval
def _values(*operands, count, messages):
    return list(operands[:count])


def _jvp(primals, tangents, *, count, messages):
    return checked_p.bind(*primals, count=count, messages=messages), list(tangents[:count])


def _batched(operands, dims, *, count, messages):
    return checked_p.bind(*operands, count=count, messages=messages), list(dims[:count])


def _checkified(*operands, count, messages):
    # What checkify knows stands in front, and with newer versions of JAX is one more.
    own = len(operands) - count - len(messages)
    *context, error, enabled = operands[:own]
    values, holds = operands[own : own + count], operands[own + count :]

    def check(*holds):
        for condition, message in zip(holds, messages, strict=True):
            checkify.debug_check(jnp.all(condition), message)

    error, _ = checkify_jaxpr(*context, jax.make_jaxpr(check)(*holds), enabled, error, *holds)
    return error, list(values)


ad.primitive_jvps[checked_p] = _jvp
batching.primitive_batchers[checked_p] = _batched
mlir.register_lowering(checked_p, mlir.lower_fun(_values, multiple_results=True))
error_checks[checked_p] = _checkified
