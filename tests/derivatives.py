"""Values, slopes and curvatures of a primitive, in a batch and row by row, in every mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import ArrayLike

SECOND = ("forward over reverse", "twice reverse", "in a scan")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _derivatives(f, modes, *args):
    positions = range(len(args))

    def scanned(*args):
        # Where some versions of JAX lose custom rules and differentiate the body.
        start = jnp.zeros((), args[0].dtype)
        one = [x[None] for x in args]
        return lax.scan(lambda total, x: (total + f(*x), None), start, one)[0]

    def by_row(*args):
        # One argument is differentiated at a time, since by the others a slope may be infinite.
        slopes = [jax.jacrev(f, i) for i in positions]
        inside = [jax.jacrev(scanned, i) for i in positions]
        ways = {
            "forward over reverse": (jax.jacfwd, slopes),
            "twice reverse": (jax.jacrev, slopes),
            "in a scan": (jax.jacrev, inside),
        }
        first = {
            "forward": [jax.jacfwd(f, i)(*args) for i in positions],
            "reverse": [slope(*args) for slope in slopes],
        }
        second = {
            mode: [[d(slope, j)(*args) for j in positions] for slope in slopes]
            for mode, (d, slopes) in ways.items()
            if mode in modes
        }
        return f(*args), first, second

    value, pull = jax.vjp(f, *args)
    return jax.vmap(by_row)(*args), (value, pull(jnp.ones_like(value)))


def check(
    f, args, value, slopes, curvatures, *, terms: ArrayLike = 0.0, cancels=False, modes=SECOND
):
    """f has these values, slopes by each argument and curvatures by each two of them.

    Every argument and every answer has a row for each point. What is NaN in the slopes or
    curvatures that are wanted is not compared, but never NaN. Curvatures, and slopes that cancel,
    are as exact as the largest of their row, or as the terms of each row's curvature. Nothing is
    promised of curvatures that are None.
    """
    dtype = args[0].dtype
    # The rules are the same in both widths: which of them JAX takes need be asked in one.
    modes = modes if dtype == np.float32 else modes[:1]
    (alone, first, second), (together, gradients) = _derivatives(f, modes, *args)
    rtol, tiny = 16 * float(jnp.finfo(dtype).eps), float(jnp.finfo(dtype).tiny)

    def same(got, wanted, what, by_row=False, terms: ArrayLike = 0.0):
        got, wanted = np.asarray(got), np.asarray(wanted, np.float64)
        assert got.dtype == dtype
        if what != "value":
            assert not np.any(np.isnan(got)), what
            got = np.where(np.isnan(wanted), np.nan, got)
        atol = tiny
        if by_row:
            sizes = np.where(np.isfinite(wanted), np.abs(wanted), 0)
            largest = np.maximum(sizes.reshape(len(sizes), -1).max(1), terms)
            atol = tiny + rtol * largest.reshape(-1, *[1] * (wanted.ndim - 1))
        wrong = ~np.isclose(got, wanted, rtol=rtol, atol=atol, equal_nan=True)
        assert not np.any(wrong), f"{what}\ngot    {got[wrong]}\nwanted {wanted[wrong]}"

    same(alone, value, "value")
    same(together, value, "value")
    for i in range(len(args)):
        for mode in first:
            same(first[mode][i], slopes[i], f"{mode}, argument {i}", by_row=cancels)
        same(gradients[i], slopes[i], f"in a batch, argument {i}", by_row=cancels)
        if curvatures is None:
            continue
        for j in range(len(args)):
            for mode in second:
                what = f"{mode}, arguments {i} and {j}"
                same(second[mode][i][j], curvatures[i][j], what, by_row=True, terms=terms)


def check_differences(f, args, rtol, atol=1e-9, step=1e-5):
    """The first and second derivatives in every mode are those of differences, in one program.

    Arguments and answers are trees of arrays of one width; directions are drawn at random.
    """
    args = jax.tree.map(jnp.asarray, tuple(args))
    draw = np.random.default_rng(0).normal

    def directions(tree):
        return jax.tree.map(lambda x: jnp.asarray(draw(size=x.shape), x.dtype), tree)

    def along(x, y):
        return sum(map(jnp.vdot, jax.tree.leaves(x), jax.tree.leaves(y)))

    @jax.jit
    def everything(args, one, other, weights):
        def forward(*args):
            return jax.jvp(f, args, one)

        def reverse(*args):
            return jax.vjp(f, *args)[1](weights)

        def moved(far):
            return forward(*jax.tree.map(lambda x, t: x + far * t, args, other))

        ends = lax.map(moved, jnp.array([-step, step]))
        first, second = jax.tree.map(lambda y: (y[1] - y[0]) / (2 * step), ends)
        weighed = along(first, weights), along(second, weights)
        slopes, changes = jax.jvp(reverse, args, other)
        twice = jax.vjp(reverse, *args)[1](one)
        of_forward = jax.vjp(lambda *args: forward(*args)[1], *args)[1](weights)
        return {
            "forward": (jax.jvp(forward, args, other)[1], (first, second)),
            "reverse": ((along(slopes, other), along(changes, one)), weighed),
            "reverse over reverse": (along(twice, other), weighed[1]),
            "reverse over forward": (along(of_forward, other), weighed[1]),
        }

    weights = directions(jax.eval_shape(f, *args))
    for what, both in everything(args, directions(args), directions(args), weights).items():
        for got, wanted in zip(*map(jax.tree.leaves, both), strict=True):
            np.testing.assert_allclose(got, wanted, rtol, atol, err_msg=what)
