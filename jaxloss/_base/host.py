"""Numbers and arrays of Python and numpy, converted so that JAX takes them with the same values."""

from __future__ import annotations

import decimal
import fractions
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

# Types of values that JAX takes as they are. That of its own arrays is not public: it is added when
# the first comes along.
PLAIN: set[type] = {type(None), str, bool, float}
# Written out in a call to `isinstance` a union is made anew each time, which takes longer than the
# question, in eager calls on small arrays as long as all the rest.
_NUMBER = (int, float)
_OF_NUMPY = (np.generic, np.ndarray)
_OF_HOST = (*_NUMBER, *_OF_NUMPY)


def number(value: object, *, read: bool = True) -> int | float | None:
    """`value`, a number of any library, as Python's; None for what is traced or no number.

    A number of JAX is waited for and read, or is None without `read`.
    """
    if isinstance(value, _NUMBER):
        return value
    if isinstance(value, jax.Array):
        if (
            not read
            or isinstance(value, jax.core.Tracer)
            or value.ndim
            or not value.is_fully_addressable
        ):
            return None
        value = jax.device_get(value)  # Said aloud, so that a transfer guard lets it pass.
    value = python(value)
    return value if isinstance(value, _NUMBER) else None


def python(value: Any) -> Any:
    """A scalar as Python has it, which hashes and compares alike whatever library it is from."""
    if isinstance(value, _OF_NUMPY):
        return value if value.ndim or isinstance(value, np.ma.MaskedArray) else value.item()
    if isinstance(value, (fractions.Fraction, decimal.Decimal)):
        return float(value)
    return value


def array(value: Any) -> Any:
    """A value that is to be an array of numbers; integers that JAX would wrap become floats."""
    value = listed(value)
    if _is_wide(value):
        return float(value) if isinstance(value, int) else value.astype(float)
    return value


def listed(value: Any) -> Any:
    """Nested lists as arrays, where they make one; numbers as Python's."""
    if isinstance(value, _OF_HOST):
        return value
    if isinstance(value, jax.Array):
        if not isinstance(value, jax.core.Tracer):
            PLAIN.add(type(value))
        return value
    if not isinstance(value, (list, tuple)):
        return python(value)
    leaves = jax.tree.leaves(value)
    if any(isinstance(leaf, np.ma.MaskedArray) for leaf in leaves):
        return value  # Whose mask would be lost.
    try:
        if any(isinstance(leaf, jax.Array) for leaf in leaves):
            return jnp.asarray(value)
        made = np.asarray(value)
        if leaves and made.dtype.kind in "fO" and all(isinstance(leaf, int) for leaf in leaves):
            # For numpy too, they are too large or too far apart for one dtype of integers.
            made = np.asarray(value, object)
            dtype = np.uint64 if made.min() >= 0 else np.int64
            made = np.clip(made, *_limits(np.dtype(dtype))).astype(dtype)
    except (TypeError, ValueError):
        return value
    return value if made.dtype.kind in "OSUMm" else made  # Which is no array of numbers.


def integers(value: Any) -> Any:
    """Labels or lengths; of an empty list numpy would make floats."""
    made = listed(value)
    if made is not value and isinstance(made, np.ndarray) and not made.size:
        return made.astype(np.int32)
    return made


def narrowed(given: Mapping[str, Any]) -> dict[str, Any]:
    """The integers that JAX would wrap, replaced by integers that it takes.

    What was equal is still equal, also between arguments, and what was no class is still none.
    """
    wide = {name: np.asarray(x, object) for name, x in given.items() if _is_wide(x)}
    if not wide:
        return {}
    signed, unsigned = (jax.dtypes.canonicalize_dtype(t) for t in (np.int64, np.uint64))
    if all(x.min() >= 0 and x.max() <= _limits(unsigned)[1] for x in wide.values()):
        return {name: x.astype(unsigned) for name, x in wide.items()}
    low, high = _limits(signed)
    beyond = {n for x in wide.values() for n in x.flat if not low <= n <= high}
    taken = {n: high - 1 - i if n > 0 else low + 1 + i for i, n in enumerate(sorted(beyond))}
    return {
        name: np.array([taken.get(n, n) for n in x.flat], signed).reshape(x.shape)
        for name, x in wide.items()
    }


@functools.cache  # Asking numpy takes longer than all that is done with the answer.
def _limits(dtype: np.dtype) -> tuple[int, int]:
    found = np.iinfo(dtype)
    return int(found.min), int(found.max)


def _is_wide(value: Any) -> bool:
    """Whether some of these integers are beyond the signed ones of JAX, 32 bits without x64."""
    if isinstance(value, int):
        least = most = value
    elif isinstance(value, _OF_NUMPY) and value.dtype.kind in "iu":
        if value.dtype.itemsize < 8 or not value.size or isinstance(value, np.ma.MaskedArray):
            return False
        least, most = int(value.min()), int(value.max())
    else:
        return False
    bound = 1 << 8 * jax.dtypes.canonicalize_dtype(np.int64).itemsize - 1
    return not -bound <= least <= most < bound
