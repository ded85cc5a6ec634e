"""Each elementwise primitive alone: at ties, zero and infinity, in every mode and both widths."""

import decimal
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from derivatives import check

from jaxloss._base import elementwise

inf, nan = math.inf, math.nan
log3 = math.log(3)


def hinge_below_a_tie(x):
    return elementwise.hinge(x, 0)


# x, value, slope, curvature.
OF_ONE = {
    elementwise.hinge: [
        (-inf, 0, 0, 0),
        (-2, 0, 0, 0),
        (-1e-30, 0, 0, 0),
        (-0.0, 0, 1, 0),
        (0, 0, 1, 0),
        (1e-30, 1e-30, 1, 0),
        (3, 3, 1, 0),
        (inf, inf, 1, 0),
    ],
    hinge_below_a_tie: [
        (-inf, 0, 0, 0),
        (-1e-30, 0, 0, 0),
        (-0.0, 0, 0, 0),
        (0, 0, 0, 0),
        (1e-30, 1e-30, 1, 0),
        (inf, inf, 1, 0),
    ],
}
# x, y, value, slopes by x and y, curvatures by xx, xy and yy; nan where nothing is promised.
OF_TWO = {
    elementwise.lesser: [
        (1, 2, 1, 1, 0, 0, 0, 0),
        (2, -1, -1, 0, 1, 0, 0, 0),
        (3, 3, 3, 0.5, 0.5, 0, 0, 0),
        (0, -0.0, 0, 0.5, 0.5, 0, 0, 0),
        (inf, inf, inf, 0.5, 0.5, 0, 0, 0),
        (-inf, 5, -inf, 1, 0, 0, 0, 0),
        (inf, 5, 5, 0, 1, 0, 0, 0),
    ],
    elementwise.silenced: [
        (2, 3, 3, 0, 1, 0, 0, 0),
        (0, 3, 3, 0, 1, 0, 0, 0),
        (2, inf, inf, 0, 1, 0, 0, 0),
        (1e-30, -inf, -inf, 0, 1, 0, 0, 0),
        (0, inf, 0, 0, 0, 0, 0, 0),
        (-0.0, -inf, 0, 0, 0, 0, 0, 0),
    ],
    elementwise.product: [
        (2, 3, 6, 3, 2, 0, 1, 0),
        (0, -3, 0, -3, 0, 0, 1, 0),
        (-2, 0, 0, 0, -2, 0, 1, 0),
        (0, inf, 0, 0, 0, 0, nan, 0),
        (-0.0, -inf, 0, 0, 0, 0, nan, 0),
        (2, -inf, -inf, -inf, 2, 0, 1, 0),
        (-1, inf, -inf, inf, -1, 0, 1, 0),
    ],
    elementwise.less_log: [
        (3, 2, 1, 1, -1, 0, 0, 0),
        (0, -inf, inf, 1, -1, 0, 0, 0),
        (inf, 2, inf, 1, -1, 0, 0, 0),
        (inf, inf, inf, 1, 0, 0, 0, 0),
    ],
    elementwise.quotient: [
        (6, 3, 2, 1 / 3, -2 / 3, 0, -1 / 9, 4 / 9),
        (0, -4, 0, -1 / 4, 0, 0, -1 / 16, 0),
        (2, 1e-10, 2e10, 1e10, -2e20, 0, -1e20, 4e30),
        (3, inf, 0, 0, 0, 0, 0, 0),
        (-3, 0, -inf, inf, inf, 0, -inf, -inf),
    ],
}


def columns(rows, arguments, dtype):
    table = np.array(rows, np.float64).T
    args = [jnp.asarray(x, dtype) for x in table[:arguments]]
    return args, table[arguments], table[arguments + 1 :]


@pytest.mark.parametrize("f", OF_ONE)
def test_of_one_argument(f, dtype):
    args, value, (slope, curvature) = columns(OF_ONE[f], 1, dtype)
    check(f, args, value, [slope], [[curvature]])


@pytest.mark.parametrize("f", OF_TWO)
def test_of_two_arguments(f, dtype):
    args, value, (by_x, by_y, xx, xy, yy) = columns(OF_TWO[f], 2, dtype)
    check(f, args, value, [by_x, by_y], [[xx, xy], [xy, yy]])


def test_quotient_of_what_has_no_square(dtype):
    huge = float(jnp.finfo(dtype).max) / 16
    args, value, (by_x, by_y) = columns([(huge / 2, huge, 0.5, 1 / huge, -0.5 / huge)], 2, dtype)
    nothing = np.zeros(1)
    check(elementwise.quotient, args, value, [by_x, by_y], [[nothing] * 2] * 2)


def test_softplus(dtype):
    x = [-inf, -1000, -80, -20, -1, -(2.0**-30), -0.0, 0, 0.5, 17.5, 90, 1000, inf]
    with decimal.localcontext(prec=60):
        powers = [decimal.Decimal(t).exp() for t in x[1:-1]]
        value = [0, *((1 + power).ln() for power in powers), inf]
        slope = [0, *(power / (1 + power) for power in powers), 1]
        curvature = [0, *(power / (1 + power) ** 2 for power in powers), 0]
    args = [jnp.asarray(x, dtype)]
    value, slope, curvature = (np.array(y, float) for y in (value, slope, curvature))
    # JAX takes σ(x) from 1 in the derivative of σ, which leaves an absolute error.
    check(elementwise.softplus, args, value, [slope], [[curvature]], terms=1)


def test_kept():
    keep, x = jnp.array([[True, False], [False, True]]), jnp.array([[1.0, jnp.nan], [jnp.inf, -2]])
    for f in (elementwise.masked, jax.vmap(elementwise.masked)):
        np.testing.assert_array_equal(f(keep, x), [[1, 0], [0, -2]])
    np.testing.assert_array_equal(elementwise.masked(keep, x, 0.5), [[1, 0.5], [0.5, -2]])
    # Behind it, what is not masked has no part in a derivative of any order.
    args, one, none = [x], np.array([[1, 0], [0, 1]]), np.zeros((2, 2))

    def squares(x, keep=keep):
        return elementwise.masked(keep, x, 3) ** 2

    gradient, pull = jax.vjp(jax.grad(lambda x: squares(x).sum()), x)
    np.testing.assert_array_equal(gradient, [[2, 0], [0, -4]])
    np.testing.assert_array_equal(pull(jnp.ones_like(x))[0], 2 * one)
    np.testing.assert_array_equal(jax.jvp(squares, args, [jnp.ones_like(x)])[1], gradient + none)


@pytest.mark.parametrize("x", [1.0, jnp.array([[1, 2]]), jnp.array(jnp.nan)])
def test_kept_leaves_alone_what_stands_for_all_places(x):
    x = jnp.asarray(x)
    assert elementwise.masked(None, x) is x
    assert elementwise.masked(jnp.zeros(2, bool), x) is x


ALL = [*((f, 1) for f in [*OF_ONE, elementwise.softplus]), *((f, 2) for f in OF_TWO)]


@pytest.mark.parametrize(("f", "arguments"), ALL)
def test_nan_stays_nan(f, arguments):
    for i in range(arguments):
        for other in (0.0, 1.0, jnp.inf):
            args = [jnp.float32(other)] * arguments
            args[i] = jnp.float32(jnp.nan)
            # The weight of `silenced` decides only what becomes of an infinity.
            if not (f is elementwise.silenced and i == 0):
                assert jnp.isnan(f(*args)), args
