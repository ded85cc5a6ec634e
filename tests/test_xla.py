"""Each trick of the cellar alone: it changes no number, and is worth something.

Programs are those of XLA's default pipeline. Beside each stands what one would write without the
trick: the control, and the day it does no worse the trick may go.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from derivatives import check
from hlo import optimised

from jaxloss._base import xla

inf, nan = math.inf, math.nan
X = jax.ShapeDtypeStruct((64, 128), jnp.float32)
SIZE = 64 * 128 * 4
BLOCKS = jax.ShapeDtypeStruct((8, 64, 128), jnp.float32)


def cost(f, *args):
    """Temporaries, and bytes read and written, in arrays of the size of X."""
    program: Any = optimised(f, *args)
    memory, bytes_ = program.memory_analysis(), program.cost_analysis()["bytes accessed"]
    return np.array([memory.temp_size_in_bytes, bytes_]) / SIZE


def text(f, *args):
    program: Any = optimised(f, *args)
    return program.as_text()


def mesh(kind):
    return jax.make_mesh((8,), ("d",), axis_types=(kind,))


def identity(x):
    return x


# opaque


def test_opaque_keeps_a_product_from_its_sum():
    """A product contracted with a sum is not rounded, and its rounding is what is left here."""

    def left(f, x, y):
        return f(x * x) - y

    x = np.full(16, 1 + 2.0**-13, np.float32)
    y = x * x
    for way in (left, lambda f, *a: jax.vmap(functools.partial(left, f))(*a)):
        found, control = (
            optimised(functools.partial(way, f), x, y)(x, y) for f in (xla.opaque, identity)
        )
        np.testing.assert_array_equal(found, 0)
        assert np.all(control != 0)


@pytest.mark.parametrize("f", [xla.opaque, xla.recomputed])
def test_opaque_is_x(f, dtype):
    x = np.array([-3, -1e-30, -0.0, 0, 0.5, float(jnp.finfo(dtype).max), inf, nan], dtype)
    nothing = np.zeros_like(x)
    check(f, [x], x, [nothing + 1], [[nothing]])
    finite = x[:5]
    check(
        lambda x: f(x) * x, [finite], finite**2, [2 * finite], [[np.full_like(finite, 2)]], terms=2
    )


# recomputed, recomputed_difference


def absolute_errors(f, x, y):
    return jnp.sum(jnp.abs(x - y)), jnp.sign(f(x) - y)


def distances(f, x, y):
    length = jnp.sqrt(jnp.sum(jnp.square(x - y), 1, keepdims=True))
    return length, (f(x) - y) / length


@pytest.mark.parametrize("formula", [absolute_errors, distances])
def test_recomputed_is_not_stored(formula):
    one, control = (cost(functools.partial(formula, f), X, X) for f in (xla.recomputed, identity))
    # Twice x and y, and the gradient; stored, the difference is written once and read.
    assert one[1] < 5.1 < 5.9 < control[1]
    assert one[0] < 0.1


def smoothed(difference, x):
    peak = jnp.max(x, 1, keepdims=True)
    total = jnp.sum(jnp.exp(x - peak), 1)
    return jnp.log(total) - jnp.sum(difference(x, peak), 1) / x.shape[1]


def test_recomputed_difference_is_not_stored():
    def others(x, y):
        return xla.recomputed(x) - y

    one, *controls = (
        cost(functools.partial(smoothed, f), X)
        for f in (xla.recomputed_difference, jnp.subtract, others)
    )
    assert one[0] < 0.1
    for control in controls:
        assert control[0] > 0.9
        assert control[1] > one[1] + 0.9


def test_recomputed_difference_is_the_difference(dtype):
    x = np.array([3, 1e-30, -0.0, 0, 5, inf, -inf, 0.5], dtype)
    y = np.array([1, 2e-30, 0, -0.0, inf, 2, 2, 0.5], dtype)
    one, nothing = np.ones_like(x), np.zeros_like(x)
    check(xla.recomputed_difference, [x, y], x - y, [one, -one], [[nothing] * 2] * 2)
