"""Compensated arithmetic as the compiler leaves it: with what they lose, sums are exact."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hlo import optimised

from jaxloss._base import exact


def pairs(dtype, size=500):
    """Two arrays of which each entry has about the other's size, or nothing in common with it."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, size)).astype(dtype)
    exponents = rng.integers(-30, 30, size) * (np.arange(size) % 2)
    y = np.ldexp(y, exponents).astype(dtype)
    y[:4] = -x[0], 0, -0.0, x[3]
    return x, y


def fractions(x):
    return [Fraction(float(t)) for t in x]


def add(one, other):
    return [a + b for a, b in zip(fractions(one), fractions(other), strict=True)]


def run(f, *args):
    return [np.asarray(y) for y in optimised(f, *args)(*args)]


def test_two_sum(dtype):
    x, y = pairs(dtype)
    for f in (exact.two_sum, jax.vmap(exact.two_sum)):
        total, rest = run(f, x, y)
        assert total.dtype == rest.dtype == dtype
        np.testing.assert_array_equal(total, x + y)
        assert add(total, rest) == add(x, y)
    # Most sums have something to lose.
    assert sum(a != b for a, b in zip(fractions(total), add(x, y), strict=True)) > len(x) / 2


def test_product_error(dtype):
    x, y = pairs(dtype)

    def f(x, y):
        return x * y, exact.product_error(x, y)

    wanted = [a * b for a, b in zip(fractions(x), fractions(y), strict=True)]
    # Without optimisation too: a product contracted with a sum has no rounding to take.
    for way in (f, jax.vmap(f)):
        for product, rest in (run(way, x, y), jax.jit(way)(x, y)):
            assert product.dtype == rest.dtype == dtype
            np.testing.assert_array_equal(product, x * y)
            assert add(product, rest) == wanted
    assert sum(a != b for a, b in zip(fractions(product), wanted, strict=True)) > len(x) / 2


def terms(dtype, size):
    """Positive and negative terms of many sizes, most of which cancel."""
    rng = np.random.default_rng(size)
    half = np.ldexp(rng.normal(size=(2, size // 2)), rng.integers(0, 20, size // 2))
    small = rng.normal(size=(2, size - size // 2 * 2))
    x = np.concatenate([half, small, -half * (1 + 1e-6)], -1).astype(dtype)
    return rng.permuted(x, axis=-1)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000, 4097])
def test_long_sum(size, dtype):
    x = terms(dtype, size)
    rest = np.abs(x) * jnp.finfo(dtype).eps / 4
    eps = Fraction(float(jnp.finfo(dtype).eps))
    for args in ((x,), (x, rest)):
        total, taken = run(exact.long_sum, *args)
        assert total.shape == taken.shape == (2,)
        assert total.dtype == taken.dtype == dtype
        wanted = [sum(sum(fractions(a[i])) for a in args) for i in range(2)]
        # What is taken was rounded itself, each time by no more than eps of the losses so far.
        bounds = [size * eps**2 * sum(map(abs, fractions(row))) for row in x]
        off = [abs(a - b) for a, b in zip(add(total, taken), wanted, strict=True)]
        assert all(a <= bound for a, bound in zip(off, bounds, strict=True))
        if size > 3:  # No sum that is one number comes near.
            (plain,) = run(lambda x: [jnp.sum(x, -1)], x)
            for alone in (total, plain):
                off = [abs(a - b) for a, b in zip(fractions(alone), wanted, strict=True)]
                assert all(a > 10 * bound for a, bound in zip(off, bounds, strict=True))


def test_derivatives(dtype):
    """What rounding takes counts as constant; the sum has the derivative of any sum."""
    x, y = (jnp.asarray(a[4:12]) for a in pairs(dtype))
    ones, zeros = jnp.ones_like(x), jnp.zeros_like(x)

    def weighted(x, y):
        return exact.long_sum(x * y, x)

    def derivatives(f, *args):
        value, pull = jax.vjp(f, *args)
        bent = [d(jax.jacrev(lambda *args: f(*args)[0].sum()), 1) for d in (jax.jacfwd, jax.jacrev)]
        forward = jax.jvp(f, args, (ones, 3 * ones))[1]
        return forward, pull(jax.tree.map(jnp.ones_like, value)), [d(*args) for d in bent]

    def program(x, y):
        lost = jax.jvp(exact.product_error, (x, y), (ones, ones))[1]
        return derivatives(exact.two_sum, x, y), derivatives(weighted, x, y), lost

    of_two, of_many, lost = jax.jit(program)(x, y)
    for got, forward, reverse, bent in (
        (of_two, (4 * ones, zeros), (ones, ones), 0),
        (of_many, (jnp.sum(y + 3 * x), 0), (y, x), np.eye(8)),
    ):
        for mine, wanted in zip(got[0], forward, strict=True):
            np.testing.assert_allclose(mine, wanted, rtol=1e-6)
        np.testing.assert_array_equal(got[1], reverse)
        for mine in got[2]:
            np.testing.assert_array_equal(mine, bent + np.zeros((8, 8)))
    most = 4 * float(jnp.finfo(dtype).eps)
    np.testing.assert_array_less(np.abs(lost), most * (np.abs(x) + np.abs(y)))


def test_a_batch_of_long_sums(dtype):
    x = terms(dtype, 40)
    together = run(jax.vmap(exact.long_sum), x)
    for row, *sums in zip(x, *together, strict=True):
        np.testing.assert_array_equal(run(exact.long_sum, row), sums)
