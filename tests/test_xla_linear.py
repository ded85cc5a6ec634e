"""The cellar's linear map: its transpose is the one by hand, mapped and over devices as well.

Beside it stands what one would write without it: see `test_xla`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from derivatives import check
from jax import lax
from jax.custom_derivatives import linear_call
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from test_xla import X, cost, mesh, text

from jaxloss._base import xla

ORDER = np.random.default_rng(0).permutation(64)


def taken(x, order):
    return x.at[order].get(mode="promise_in_bounds", wrap_negative_indices=False)


def permuted(linear, x):
    return linear(
        lambda orders, x: taken(x, orders[0]),
        lambda orders, x: taken(x, orders[1]),
        (ORDER, np.argsort(ORDER)),
        x,
        x,
    )


def automatic(f, transpose, given, x, like):
    return f(given, x)


def called(f, transpose, given, x, like):
    return linear_call(f, transpose, given, x)


def test_the_transpose_is_the_one_by_hand():
    def pull(linear, x):
        return jax.vjp(functools.partial(permuted, linear), x)[1](x)[0]

    def twice(linear, x):
        def slope(x):
            return jax.grad(lambda x: jnp.sum(permuted(linear, x) ** 3))(x)

        return jax.grad(lambda x: jnp.sum(slope(x)))(x)

    def batch(linear, x):
        return jax.vmap(functools.partial(pull, linear), 1, 1)(x)

    for way in (pull, twice, batch):
        by_hand, control = (text(functools.partial(way, f), X) for f in (xla.linear, automatic))
        assert " scatter(" not in by_hand
        assert " scatter(" in control
        x = jnp.arange(X.size, dtype=jnp.float32).reshape(X.shape) / X.size
        np.testing.assert_allclose(way(xla.linear, x), way(automatic, x), rtol=1e-6)
    # When JAX can map its own `linear_call`, `linear` may go.
    with pytest.raises(NotImplementedError, match="linear_call"):
        batch(called, jnp.ones(X.shape))
    # Nothing stands around it.
    assert np.all(cost(functools.partial(pull, xla.linear), X) < [0.1, 2.1])


def scaled(w, x):
    return xla.linear(lambda w, x: w * x, lambda w, y: w * y, w, x, x)


def test_linear(dtype):
    w = np.array([2, -0.5, 3, 0], dtype)
    x = np.array([0.25, 4, -1, 5], dtype)
    nothing, one = np.zeros_like(x), np.ones_like(x)
    # By w it is differentiated as JAX would.
    check(scaled, [w, x], w * x, [x, w], [[nothing, one], [one, nothing]])


def test_a_part_of_a_linear_solution_may_be_known():
    def f(x, y):
        along = {"x": x, "y": y}
        return xla.linear(
            lambda w, at: w * (at["x"] + 2 * at["y"]),
            lambda w, z: {"x": w * z, "y": 2 * w * z},
            jnp.full(3, 5.0),
            along,
            x,
        )

    x, y = jnp.arange(3.0), jnp.ones(3)
    np.testing.assert_array_equal(jax.grad(lambda y: jnp.sum(f(x, y)))(y), np.full(3, 10))
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(f(x, y)))(x), np.full(3, 5))


def solved(f, transpose, given, x, like):
    """y - f(given, x) = 0 for a given x, by a solver of its own."""

    def equation(both):
        return both[0], both[1] - f(given, both[0])

    def solve(_, right):
        return right[0], right[1] + f(given, right[0])

    def transposed(_, right):
        return right[0] + transpose(given, right[1]), right[1]

    nothing = lax.pcast(jnp.zeros_like(like), "d", to="varying")
    return lax.custom_linear_solve(equation, (x, nothing), solve, transposed)[1]


def test_what_devices_share_is_added_up_by_hand():
    def slope(linear, w, x):
        """Of a row of w, which devices share, times their own rows."""

        def along(w, x):
            return linear(
                lambda x, w: lax.pcast(w, "d", to="varying") * x,
                lambda x, y: lax.psum(y * x, "d"),
                x,
                w,
                x,
            )

        return jax.grad(lambda w: jnp.sum(along(w, x)))(w)

    def program(linear):
        f = functools.partial(slope, linear)
        return jax.shard_map(f, mesh=mesh(AxisType.Auto), in_specs=(P(), P("d")), out_specs=P())

    w, x = jnp.ones((1, 3)), jnp.arange(24.0).reshape(8, 3)
    np.testing.assert_array_equal(jax.jit(program(xla.linear))(w, x), x.sum(0, keepdims=True))
    text = jax.jit(program(xla.linear)).lower(w, x).as_text()
    assert text.count("all_reduce") == 1  # By hand, and JAX adds up nothing once more.
    with pytest.raises((TypeError, ValueError), match="vary"):  # Else that would do.
        jax.jit(program(solved))(w, x)


def test_a_linear_map_in_a_mapped_axis():
    def f(w, x):
        return xla.linear(
            lambda w, x: lax.psum(w * x, "i"), lambda w, y: w * lax.psum(y, "i"), w, x, x
        )

    def automatic(w, x):
        return lax.psum(w * x, "i")

    w, x = jnp.arange(1.0, 4), jnp.arange(12.0).reshape(4, 3)
    for axes in ((None, 0), (0, None), (None, None)):
        given = [
            a if axis is None else jnp.stack([a] * 4)
            for a, axis in zip((w, x[0]), axes, strict=True)
        ]

        def mapped(f, *args, axes=axes):
            return jax.vmap(f, axes, axis_name="i", axis_size=4)(*args)

        np.testing.assert_allclose(mapped(f, *given), mapped(automatic, *given))
