"""`softmax_statistics`: values, derivatives, labels, masks and meshes."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalMemberAccess=false
# Options in dictionaries lose their types.

import functools

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from derivatives import check_differences
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss

INF, NAN = np.inf, np.nan
N, C, K = 6, 5, 3
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(N, C)).astype(np.float32) * 3
LABELS = RNG.integers(0, C, (N, K))
WHERE = np.array(
    [[1, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 0], [1, 0, 1, 1, 0], [1] * 5],
    bool,
)
OPTIONS = {
    "plain": {},
    "tempered": {"temperature": 0.7},
    "capped": {"softcap": 2.5, "temperature": 1.3},
    "masked": {"where": WHERE},
    "everything": {"where": WHERE, "softcap": 2.5, "temperature": 1.3},
}
FLOATS = "log_prob", "log_normalizer", "entropy"
VARIED = pytest.mark.parametrize("name", OPTIONS)


def floats(logits, labels, **options):
    return jaxloss.softmax_statistics(logits, labels, **options)[:3]


def weights(found):
    """Another cotangent for every number."""
    return tuple(
        jnp.cos(2.0 * i + jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
        for i, x in enumerate(found)
    )


def pulled(logits, labels, **options):
    """The gradient by the logits, with other cotangents for every number."""
    found, pull = jax.vjp(lambda x: floats(x, labels, **options), logits)
    return pull(weights(found))[0]


@VARIED
def test_values(name, dtype):
    logits = jnp.asarray(LOGITS, dtype)
    got = jaxloss.softmax_statistics(logits, jnp.asarray(LABELS), **OPTIONS[name])
    wanted = oracle.softmax_statistics(LOGITS, LABELS, **OPTIONS[name])
    eps = float(jnp.finfo(dtype).eps)
    for x, y in zip(got[:3], wanted, strict=False):
        assert x.dtype == dtype
        np.testing.assert_allclose(x, y, rtol=8 * eps, atol=8 * eps)
    np.testing.assert_array_equal(got.prediction, wanted[3])
    one = jaxloss.softmax_statistics(logits, jnp.asarray(LABELS[:, 1]), **OPTIONS[name])
    np.testing.assert_array_equal(one.log_prob, got.log_prob[:, 1])


def test_the_classes_may_be_any_axes():
    logits, labels = RNG.normal(size=(2, 3, 4, 5)), RNG.integers(0, 12, (2, 5, K))
    wanted = oracle.softmax_statistics(
        np.moveaxis(logits, 3, 1).reshape(2, 5, 12), labels, softcap=2.0
    )
    got = jaxloss.softmax_statistics(jnp.asarray(logits), labels, axis=(1, 2), softcap=2.0)
    for x, y in zip(got, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    moved = jnp.moveaxis(jnp.asarray(logits), 1, 2)
    for x, y in zip(
        jaxloss.softmax_statistics(moved, labels, axis=(2, 1), softcap=2.0), got, strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-6)
    labels = RNG.integers(0, 3, (2, 4, 5, K))
    got = jaxloss.softmax_statistics(jnp.asarray(logits), labels, axis=1)
    wanted = oracle.softmax_statistics(np.moveaxis(logits, 1, 3), labels)
    for x, y in zip(got, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["tempered", "everything"])
def test_derivatives(name, x64):
    options = dict(OPTIONS[name])
    where = options.pop("where", None)
    holes = np.where(np.arange(C) == 1, -INF, LOGITS[:3].astype(float))
    finite, labels = np.isfinite(holes), np.array([[0, 3, 3]] * 3)

    def f(logits, numbers):
        more = {"where": None if where is None else where[:3]} | numbers
        found = floats(jnp.where(finite, logits, holes), labels, **more)
        return [jnp.sum(jnp.sin(x)) for x in found]

    check_differences(f, (jnp.where(finite, holes, 0), options), rtol=1e-5)


def test_figures_of_the_confident():
    logits, labels = jnp.array([[17.5, 0.0]]), jnp.array([[0, 1]])
    found = jaxloss.softmax_statistics(logits, labels)
    np.testing.assert_allclose(found.log_prob, [[-2.510999e-8, -17.5]], 1e-6)
    np.testing.assert_allclose(found.entropy, [4.6453483e-7], 1e-6)
    gradients = jax.jacrev(lambda x: floats(x, labels))(logits)
    forward = jax.jacfwd(lambda x: floats(x, labels))(logits)
    slope, by_entropy = 2.510999e-8, 4.3942483e-7
    for log_prob, _, entropy in (gradients, forward):
        np.testing.assert_allclose(log_prob[0, 0, 0], [slope, -slope], 1e-6)
        np.testing.assert_allclose(entropy[0, 0], [-by_entropy, by_entropy], 1e-6)


def test_the_normalizer_of_large_logits_and_of_none():
    logits = jnp.array([[1e8, 1e8], [-INF, -INF], [3e38, -3e38]])
    found = jaxloss.softmax_statistics(logits, jnp.array([0, 0, 1]))
    np.testing.assert_allclose(found.log_prob, [-np.log(2), -INF, -INF], 1e-6)
    np.testing.assert_allclose(found.log_normalizer, [1e8, -INF, 3e38])
    np.testing.assert_allclose(found.entropy, [np.log(2), 0, 0], 1e-6)
    by_logits = jax.jacrev(lambda x: floats(x, jnp.array([0, 0, 1]))[1:])(logits)
    np.testing.assert_array_equal(by_logits[0][1], np.zeros((3, 2)))
    assert np.isfinite(jnp.stack(by_logits)).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_log_probability_is_the_loss(dtype):
    logits, labels = jnp.asarray(LOGITS, dtype), jnp.asarray(LABELS[:, 0])
    for options in ({}, {"softcap": 2.5}):
        loss = functools.partial(jaxloss.softmax_cross_entropy_with_integer_labels, **options)
        value, pull = jax.vjp(lambda x, loss=loss: loss(x, labels), logits)
        found, own_pull = jax.vjp(lambda x, o=options: -floats(x, labels, **o)[0], logits)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, value, 1e-6)
        (slope,), (own,) = pull(jnp.ones(N)), own_pull(jnp.ones(N))
        assert own.dtype == dtype
        ulp = float(jnp.finfo(dtype).eps) * (4 if dtype == jnp.float32 else 1)
        np.testing.assert_allclose(*(np.asarray(x, float) for x in (own, slope)), ulp, ulp / 2**8)


@pytest.mark.parametrize("bad", [-1, C, 2**31 - 1, -(2**31)])
def test_a_bad_label_is_nan_at_its_place(bad):
    labels = LABELS.copy()
    labels[2, 1] = bad
    found = jaxloss.softmax_statistics(LOGITS, labels)
    np.testing.assert_array_equal(np.isnan(found.log_prob), labels == bad)

    @jax.jit
    def slopes(labels):
        return [jax.grad(lambda x, i=i: jnp.sum(floats(x, labels)[i]))(LOGITS) for i in range(3)]

    (by_label, *others), (_, *wanted) = slopes(labels), slopes(LABELS)
    np.testing.assert_array_equal(np.isnan(by_label), np.full((N, C), np.arange(N)[:, None] == 2))
    np.testing.assert_array_equal(others, wanted)


def test_a_label_of_an_excluded_class_is_bad():
    found = jaxloss.softmax_statistics(LOGITS, LABELS, where=WHERE)
    known = np.take_along_axis(WHERE, LABELS, 1)
    assert not known.all()
    np.testing.assert_array_equal(np.isnan(found.log_prob), ~known & WHERE.any(1, keepdims=True))


@pytest.mark.parametrize("name", ["masked", "everything"])
def test_what_takes_no_part_may_hold_anything(name):
    options = dict(OPTIONS[name])
    where, labels = options.pop("where"), jnp.asarray(np.where(WHERE.any(1), WHERE.argmax(1), 9))

    @jax.jit
    def everything(logits):
        def total(logits, options):
            found = floats(logits, labels, where=where, **options)
            return sum(jnp.sum(jnp.sin(x)) for x in found)

        first = jax.grad(total, (0, 1))
        values = jaxloss.softmax_statistics(logits, labels, where=where, **options)
        second = jax.jvp(first, (logits, options), jax.tree.map(jnp.ones_like, (logits, options)))
        return values, second

    wanted = everything(jnp.where(WHERE, LOGITS, 0))
    for fault in (NAN, INF, -INF):
        got = everything(jnp.where(WHERE, LOGITS, fault))
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_array_equal(x, y)
            assert np.isfinite(x).all()
        values, ((by_logits, _), _) = got
        assert [x[1] for x in values] == [0, 0, 0, -1]
        np.testing.assert_array_equal(by_logits[~WHERE], 0)


def test_whole_examples_may_take_no_part():
    where = jnp.arange(N)[:, None] != 2
    logits = jnp.where(where, LOGITS, NAN)
    got = jaxloss.softmax_statistics(logits, LABELS, where=where)
    wanted = jaxloss.softmax_statistics(LOGITS, LABELS)
    for x, y in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(np.delete(x, 2, 0), np.delete(y, 2, 0))
    assert [np.max(x[2]) for x in got] == [0, 0, 0, -1]
    slope = pulled(logits, LABELS, where=where)
    np.testing.assert_array_equal(slope[2], 0)
    assert np.isfinite(slope).all()


def test_minus_infinity():
    """A class of probability 0; of -softcap where there is a cap, and out where it is masked."""
    logits, labels = jnp.array([[1.0, -INF, 0.5]]), jnp.array([[0, 1]])
    found = jaxloss.softmax_statistics(logits, labels, temperature=0.5)
    assert found.log_prob[0, 1] == -INF
    two = jaxloss.softmax_statistics(logits[:, ::2], labels[:, :1], temperature=0.5)
    np.testing.assert_allclose(found.entropy, two.entropy, 1e-6)
    options = {"softcap": 2.0}
    capped = jaxloss.softmax_statistics(logits, labels, **options)
    floor = jaxloss.softmax_statistics(jnp.where(logits > -INF, logits, -1e30), labels, **options)
    for x, y in zip(capped, floor, strict=True):
        np.testing.assert_array_equal(x, y)
    masked = jaxloss.softmax_statistics(logits, labels, where=logits > -INF, **options)
    np.testing.assert_allclose(
        masked.entropy,
        jaxloss.softmax_statistics(logits[:, ::2], labels[:, 0], **options).entropy,
        1e-6,
    )

    def total(x, numbers):
        return sum(jnp.sum(y) for y in floats(x, labels[:, :1], **numbers))

    @jax.jit
    def derivatives(*args):
        slopes = jax.grad(total, (0, 1))
        dots = jax.tree.map(jnp.ones_like, args)
        forward, along = jax.value_and_grad(lambda args: jax.jvp(total, args, dots)[1])(args)
        slope, again = jax.jvp(slopes, args, dots)
        return slope, forward, along, again

    for numbers in ({"temperature": 0.5}, {"temperature": 0.5, "softcap": 2.0}):
        slope, forward, along, again = derivatives(logits, numbers)
        np.testing.assert_allclose(sum(jnp.sum(x) for x in jax.tree.leaves(slope)), forward, 1e-5)
        for x, y in zip(jax.tree.leaves(along), jax.tree.leaves(again), strict=True):
            np.testing.assert_allclose(x, y, 1e-4, 1e-5)
            assert np.isfinite(x).all()


def test_an_infinite_cap_changes_nothing():
    for x, y in zip(
        jaxloss.softmax_statistics(LOGITS, LABELS, softcap=INF),
        jaxloss.softmax_statistics(LOGITS, LABELS),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)


def test_predictions():
    logits = jnp.array([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0], [-INF, -INF, -5.0]])
    labels = jnp.zeros(3, int)
    np.testing.assert_array_equal(jaxloss.softmax_statistics(logits, labels).prediction, [1, 0, 2])
    where = jnp.array([[True, False, True]])
    found = jaxloss.softmax_statistics(logits, labels, where=where)
    np.testing.assert_array_equal(found.prediction, [2, 0, 2])


def test_one_class_and_no_example():
    found, slope = (
        f(jnp.array([[3.0], [-1.0]]), jnp.zeros((2, K), int))
        for f in (jaxloss.softmax_statistics, pulled)
    )
    np.testing.assert_array_equal(found.entropy, 0)
    np.testing.assert_array_equal(found.log_prob, 0)
    np.testing.assert_array_equal(found.log_normalizer, [3, -1])
    np.testing.assert_allclose(slope[:, 0], np.cos([2, 3]), 1e-6)  # Those of the normalizer.
    none = jaxloss.softmax_statistics(jnp.zeros((0, C)), jnp.zeros((0, K), int))
    assert [x.shape for x in none] == [(0, K), (0,), (0,), (0,)]
    none = jaxloss.softmax_statistics(LOGITS, jnp.zeros((N, 0), int))
    assert none.log_prob.shape == (N, 0)
    assert not np.asarray(pulled(jnp.zeros((0, C)), jnp.zeros((0, K), int))).size


def test_in_a_loop_and_under_other_transformations():
    """Where some versions of JAX lose custom rules and differentiate the body."""
    logits, labels = jnp.asarray(LOGITS), jnp.asarray(LABELS)

    def total(x, numbers):
        found = floats(x, labels, **numbers)
        return sum(jnp.sum(jnp.sin(y)) for y in found)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(x, y, numbers):
        return sum(jnp.sum(jnp.sin(z)) for z in floats(x, y, **numbers))

    def looped(x, numbers):
        def body(so_far, row):
            return so_far + one(*row, numbers), None

        return lax.scan(body, jnp.zeros(()), (x, labels))[0]

    args = logits, {"temperature": 0.7, "softcap": 2.5}
    dots = jax.tree.map(jnp.ones_like, args)
    found = [
        jax.jit(
            lambda args, f=f: (
                jax.jvp(jax.value_and_grad(f, (0, 1)), args, dots),
                jax.value_and_grad(lambda args: jax.jvp(f, args, dots)[1])(args),
            )
        )(args)
        for f in (total, looped)
    ]
    for x, y in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(x, y, 1e-4, 1e-5)
    by_row = jax.vmap(jaxloss.softmax_statistics)(logits, labels)
    for x, y in zip(by_row, jaxloss.softmax_statistics(logits, labels), strict=True):
        np.testing.assert_allclose(x, y, 1e-6, 1e-6)


def test_under_debugging():
    with jax.debug_nans(True), jax.disable_jit():
        logits = jnp.array([[17.5, 0.0, -INF]])
        options = {"temperature": 0.5, "softcap": 3.0}
        assert np.isfinite(pulled(logits, jnp.array([0]), **options)).all()


@pytest.mark.parametrize("name", ["model", ("data", "model")])
def test_sharded_classes_inside_shard_map(name):
    grid = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    logits, labels = RNG.normal(size=(4, 16)).astype(np.float32), RNG.integers(-1, 16, (4, 2))
    logits[1] = 0
    logits[2, 9] = 99
    by_classes, rows = P(None, name), P()

    @functools.partial(jax.shard_map, mesh=grid, in_specs=(by_classes, rows), out_specs=(rows,) * 4)
    def spread(x, y):
        return tuple(jaxloss.softmax_statistics(x, y, softcap=30.0, axis_name=name))

    whole = functools.partial(jaxloss.softmax_statistics, softcap=30.0)

    def everything(f, x):
        found, pull = jax.vjp(lambda x: tuple(f(x, labels)[:3]), x)
        return f(x, labels), pull(weights(found)), jax.jvp(lambda x: f(x, labels)[2], (x,), (x,))

    got, wanted = (jax.jit(functools.partial(everything, f))(logits) for f in (spread, whole))
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, 1e-5, 1e-6)
    program = hlo.compiled(functools.partial(everything, spread), logits)
    assert not hlo.gathering(program)
    assert max(hlo.added_up(program)) <= 4 * 2


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_sharded_classes_of_a_mesh(kind):
    grid = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind,) * 2)
    logits, labels = RNG.normal(size=(4, 16)).astype(np.float32), RNG.integers(0, 16, (4, 2))
    specs = P("data", "model"), P("data")
    args = [
        jax.device_put(x, NamedSharding(grid, spec))
        for x, spec in zip((logits, labels), specs, strict=True)
    ]

    def everything(x, y):
        def total(x):
            return sum(jnp.sum(jnp.sin(z)) for z in floats(x, y))

        return jaxloss.softmax_statistics(x, y), jax.grad(total)(x)

    with jax.set_mesh(grid):
        program = hlo.compiled(everything, *args)
        got = program(*args)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(everything(logits, labels)), strict=True):
        np.testing.assert_allclose(x, y, 1e-5, 1e-6)
    # One number of each of 8 devices tells which has the largest.
    assert all(max(x.dims, default=0) <= 16 for x in hlo.gathering(program))


def test_one_of_two_class_axes_may_be_spread():
    grid = jax.make_mesh((2,), ("model",), axis_types=(AxisType.Explicit,))
    logits, labels = RNG.normal(size=(3, 4, 5)).astype(np.float32), RNG.integers(0, 20, 3)
    for axis, spec in (((1, 2), P(None, "model")), ((2, 1), P(None, "model"))):
        wanted = jaxloss.softmax_statistics(logits, labels, axis=axis)
        with jax.set_mesh(grid):
            spread = jax.device_put(logits, NamedSharding(grid, spec))
            found = jaxloss.softmax_statistics(spread, labels, axis=axis)
        for x, y in zip(found, wanted, strict=True):
            np.testing.assert_allclose(x, y, 1e-5, 1e-6)
