"""`reduce`: one right number, over masks, weights and devices."""

import functools
import math
from typing import Any

import chex
import hlo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxloss

REDUCTIONS = ["none", "mean", "sum", "batchmean"]
RNG = np.random.default_rng(0)
LOSSES = RNG.uniform(size=(4, 3)).astype(np.float32)
WEIGHTS = RNG.uniform(size=(4, 3)).astype(np.float32)
WHERE = RNG.uniform(size=(4, 3)) < 0.6


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weights", [None, WEIGHTS, WEIGHTS[:, :1], WEIGHTS[:1, :1]])
@pytest.mark.parametrize("where", [None, WHERE, WHERE[:1], np.zeros((1, 1), bool)])
def test_reduce(reduction: Any, weights, where):
    got = jaxloss.reduce(LOSSES, reduction, weights=weights, where=where)
    wanted = oracle.reduce(LOSSES, reduction, weights=weights, where=where)
    assert got.shape == np.shape(wanted)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


BLOCK = RNG.uniform(size=(4, 3, 2)).astype(np.float32)
AXES = [0, 1, -1, (0, 2), (-1, 0), (0, 1, 2), (), None]


def rows(x, axis):
    """Every part of x that is reduced to one number, in line, and the shape of the results."""
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = sorted(a % x.ndim for a in axes)
    kept = [a for a in range(x.ndim) if a not in axes]
    shape = [x.shape[a] for a in kept]
    return x.transpose(*kept, *axes).reshape(math.prod(shape), -1), shape


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_over_an_axis_each_row_is_reduced_as_if_alone(reduction, axis):
    weights, where = BLOCK[::-1] + np.float32(0.5), BLOCK > 0.4
    where[2], where[:, 1] = False, False  # Rows of which nothing takes part.
    each = ({}, {"weights": weights}, {"where": where, "weights": weights})
    lines, shape = rows(BLOCK, axis)
    parts = [{name: rows(x, axis)[0] for name, x in options.items()} for options in each]

    @jax.jit
    def found(poisons):
        def one(options, parts, poison):
            def f(x):
                return jaxloss.reduce(x, reduction, axis=axis, **options)

            def alone(x, more):
                return jaxloss.reduce(x, reduction, **more)

            gradient = jax.grad(lambda x: f(x).sum())(poison)
            tangent = jax.jvp(f, (poison,), (jnp.ones_like(BLOCK),))[1]
            return f(BLOCK), gradient, tangent, jax.vmap(jax.grad(alone))(lines, parts)

        return [one(*args) for args in zip(each, parts, poisons, strict=True)]

    poisons = [np.where(options.get("where", True), BLOCK, np.nan) for options in each]
    for (got, gradient, tangent, slopes), own in zip(found(poisons), parts, strict=True):
        by_row = [{name: x[i] for name, x in own.items()} for i in range(len(lines))]
        wanted = [oracle.reduce(x, reduction, **o) for x, o in zip(lines, by_row, strict=True)]
        assert got.shape == tuple(shape)
        np.testing.assert_allclose(got.ravel(), wanted, rtol=1e-6)
        # A row has the gradient of its own reduction, 0 where nothing takes part, and no other.
        np.testing.assert_allclose(rows(np.asarray(gradient), axis)[0], slopes, rtol=1e-5)
        np.testing.assert_allclose(
            tangent.ravel(), np.sum(slopes, -1, dtype=np.float32), rtol=1e-5, atol=1e-6
        )


def test_an_axis_with_a_normalizer():
    counts = np.array([2, 0, 5], np.int32)
    got = jaxloss.reduce(LOSSES, axis=0, normalizer=counts)
    np.testing.assert_allclose(got, LOSSES.sum(0) / [2, np.inf, 5], rtol=1e-6)
    gradient = jax.grad(lambda x: jaxloss.reduce(x, axis=0, normalizer=counts).sum())(LOSSES)
    np.testing.assert_allclose(gradient, np.tile([0.5, 0, 0.2], (4, 1)), rtol=1e-6)
    for axis in (0, -1):
        by_one = jaxloss.reduce(LOSSES, axis=axis, normalizer=24)
        np.testing.assert_allclose(by_one, LOSSES.sum(axis) / 24, rtol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_an_axis_that_is_spread_over_devices(reduction):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    where = np.array([True, False, True])[:, None] & (BLOCK > 0.3)

    def whole(losses, where):
        return jaxloss.reduce(losses, reduction, axis=(0, 2), where=where)

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=P("data"), out_specs=P())
    def spread(losses, where):
        return jaxloss.reduce(losses, reduction, axis=(0, 2), where=where, axis_name="data")

    assert whole(BLOCK, where)[1] == 0
    for f, g in (
        (spread, whole),
        *[[jax.grad(lambda *a, f=f: f(*a).sum()) for f in (spread, whole)]],
    ):
        np.testing.assert_allclose(f(BLOCK, where), g(BLOCK, where), rtol=1e-6)


def test_masked_losses_may_be_anything():
    for poison in (np.nan, np.inf, -np.inf):
        bad = np.where(WHERE, LOSSES, poison).astype(np.float32)
        for reduction in REDUCTIONS:

            def f(x, reduction: Any = reduction):
                return jaxloss.reduce(x, reduction, where=WHERE, weights=WEIGHTS).sum()

            np.testing.assert_allclose(f(bad), f(LOSSES), rtol=1e-6)
            gradient = np.asarray(jax.grad(f)(bad))
            np.testing.assert_array_equal(gradient[~WHERE], 0)
            chex.assert_tree_all_finite(gradient)


def test_nothing_takes_part():
    nothing = np.zeros((4, 3), np.float32)
    for mean in (
        lambda x: jaxloss.reduce(x, where=nothing > 0),
        lambda x: jaxloss.reduce(x, weights=nothing),
    ):
        assert mean(LOSSES) == 0
        np.testing.assert_array_equal(jax.grad(mean)(LOSSES), 0)
    assert (
        jaxloss.reduce(np.array([np.inf, 1], np.float32), weights=np.array([0, 1], np.float32)) == 1
    )


def test_normalizer():
    np.testing.assert_allclose(jaxloss.reduce(LOSSES, normalizer=24), LOSSES.sum() / 24, rtol=1e-6)
    assert jaxloss.reduce(LOSSES, normalizer=0) == 0
    halves = [
        jax.grad(lambda x: jaxloss.reduce(x, where=w, normalizer=WHERE.sum()))(half)  # noqa: B023
        for half, w in zip(np.split(LOSSES, 2), np.split(WHERE, 2), strict=True)
    ]
    whole = jax.grad(lambda x: jaxloss.reduce(x, where=WHERE))(LOSSES)
    np.testing.assert_allclose(np.concatenate(halves), whole, rtol=1e-6)


def test_weights_are_differentiable(x64):
    losses, weights = jnp.asarray(LOSSES, jnp.float64), jnp.asarray(WEIGHTS, jnp.float64)
    gradient = jax.grad(lambda w: jaxloss.reduce(losses, weights=w))(weights)
    mean = (losses * weights).sum() / weights.sum()
    np.testing.assert_allclose(gradient, (losses - mean) / weights.sum(), rtol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean"])
def test_over_devices_it_is_the_reduction_of_all(reduction):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    args = (LOSSES, WEIGHTS, WHERE)

    def whole(losses, weights, where):
        return jaxloss.reduce(losses, reduction, weights=weights, where=where)

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=P("data"), out_specs=P())
    def spread(losses, weights, where):
        return jaxloss.reduce(losses, reduction, weights=weights, where=where, axis_name="data")

    np.testing.assert_allclose(spread(*args), whole(*args), rtol=1e-6)
    np.testing.assert_allclose(
        jax.grad(spread)(*args), jax.grad(whole)(*args), rtol=1e-5, atol=1e-7
    )
    means = np.mean([whole(*(a[i : i + 1] for a in args)) for i in range(4)])
    assert reduction != "mean" or not np.isclose(means, whole(*args))  # What it guards against.


def fit(w, x, where, **options):
    return jaxloss.reduce(jaxloss.squared_error(x @ w, 0 * x[:, 0]), where=where, **options)


FEATURES = RNG.normal(size=(8, 3)).astype(np.float32)
TOKENS = np.array([True, True, True, False, True, False, False, False])
SLOPE = jax.grad(fit)(np.ones(3, np.float32), FEATURES, TOKENS)


def inside(w, x, where, collective):
    gradient = jax.grad(fit)(w, x, where, axis_name="data")
    return collective(gradient, "data") if collective else gradient


def by_shard_map(f, **options):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    specs = P(), P("data"), P("data")
    return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=P(), **options))


def by_pmap(f):
    mapped = jax.pmap(f, axis_name="data", in_axes=(None, 0, 0))
    return lambda w, x, where: mapped(w, x.reshape(4, 2, 3), where.reshape(4, 2))[0]


@pytest.mark.parametrize(
    ("transform", "collective", "factor"),
    [
        (by_shard_map, None, 1),
        (by_shard_map, jax.lax.psum, 4),
        (functools.partial(by_shard_map, check_vma=False), jax.lax.pmean, 1),
        (functools.partial(by_shard_map, check_vma=False), jax.lax.psum, 4),
        (by_pmap, jax.lax.pmean, 1),
        (by_pmap, jax.lax.psum, 4),
    ],
)
def test_gradients_taken_inside_need_pmean(transform, collective, factor):
    f = transform(functools.partial(inside, collective=collective))
    gradient = f(np.ones(3, np.float32), FEATURES, TOKENS)
    np.testing.assert_allclose(gradient, factor * SLOPE, rtol=1e-5)


def test_gradients_taken_inside_without_anything_are_no_part_of_the_whole():
    f = by_shard_map(functools.partial(inside, collective=None), check_vma=False)
    assert not np.allclose(f(np.ones(3, np.float32), FEATURES, TOKENS), SLOPE, rtol=0.1)


def test_averaged_steps_divide_by_their_share_of_the_tokens():
    w = np.ones(3, np.float32)
    optimizer = optax.MultiSteps(optax.sgd(1.0), every_k_schedule=2)
    state, total = optimizer.init(w), np.zeros(3)
    for x, where in zip(np.split(FEATURES, 2), np.split(TOKENS, 2), strict=True):
        gradient = jax.grad(fit)(w, x, where, normalizer=TOKENS.sum() / 2)
        with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in integers.
            updates, state = optimizer.update(gradient, state, w)
        total += np.asarray(updates)
    np.testing.assert_allclose(total, -SLOPE, rtol=1e-5)


def test_over_a_vmapped_axis():
    got = jax.vmap(lambda x, w: jaxloss.reduce(x, where=w, axis_name="rows"), axis_name="rows")(
        LOSSES, WHERE
    )
    np.testing.assert_allclose(got, np.full(4, LOSSES[WHERE].mean()), rtol=1e-6)


def test_it_reduces_what_the_losses_give():
    logits, labels = jnp.zeros((3, 5), jnp.bfloat16), jnp.array([1, 2, -1])
    known = labels >= 0

    def loss(logits):
        losses = jaxloss.softmax_cross_entropy_with_integer_labels(
            logits, labels, where=known[:, None]
        )
        return jaxloss.reduce(losses, where=known)

    np.testing.assert_allclose(loss(logits), np.log(5), rtol=1e-6)
    chex.assert_tree_all_finite(jax.grad(loss)(logits))


@pytest.mark.parametrize(
    "options",
    [{"where": np.ones((1, 1024, 1), bool)}, {"weights": np.ones((1, 1024, 1), np.float32)}],
)
def test_what_stands_for_many_losses_is_not_summed_as_so_many_copies(options):
    """Such a sum of millions is wrong by some percent on the CPU with jaxlib 0.10.2."""
    losses = jnp.ones((2, 1024, 1024))
    reduced = hlo.optimised(lambda x, o: jaxloss.reduce(x, **o), losses, options)
    gradient = hlo.optimised(jax.grad(lambda x, o: jaxloss.reduce(x, **o)), losses, options)
    for _ in range(5):
        np.testing.assert_allclose(reduced(losses, options), 1, rtol=1e-6)
        np.testing.assert_allclose(gradient(losses, options), 1 / losses.size, rtol=1e-6)
