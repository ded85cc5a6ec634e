"""The cellar's tricks that choose between two computations: what runs, and where."""

import functools
import math

import chex
import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from choices import choices_for
from derivatives import check
from jax import lax
from test_xla import X, cost

import jaxloss
from jaxloss._base import xla
from jaxloss.core.classes.axes import ClassAxes
from jaxloss.core.classes.labels import at_label, locate

inf, nan = math.inf, math.nan

# shortcut


def lengths(x, shortcut=xla.shortcut, note=None):
    """Each branch has an operation by which it is known, and one to call."""

    def attempt():
        return jnp.all(x > 0), jnp.sinh(x) ** 2

    def careful():
        if note is not None:
            jax.debug.callback(note)
        return jnp.sinh(x) ** 2 + 0 * jnp.cosh(x)

    return shortcut(attempt, careful)


@pytest.mark.parametrize(("x", "times"), [(1.0, 0), (-1.0, 1)])
def test_what_shortcut_runs_on_a_cpu(x, times):
    seen = []
    found = jax.jit(lambda x: lengths(x, note=lambda: seen.append(True)))(jnp.full(3, x))
    jax.effects_barrier()
    np.testing.assert_allclose(found, np.sinh(1) ** 2, rtol=1e-6)
    assert len(seen) == times


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_where_a_branch_costs_there_is_none(platform):
    def lowered(f):
        return jax.jit(f).trace(jnp.ones(3)).lower(lowering_platforms=(platform,)).as_text()

    def attempted(attempt, careful):
        right, result = attempt()
        return lax.cond(right, lambda: result, careful)

    control = lowered(functools.partial(lengths, shortcut=attempted))
    assert "stablehlo.reduce" in control
    found = lowered(lengths)
    assert "stablehlo.reduce" not in found  # The question, and so what it is asked of.
    assert found.count("sinh") < control.count("sinh")


def test_shortcut():
    x = np.array([-2, -0.25, 0.5, 1], np.float32)
    t = x.astype(np.float64)
    # Row by row, and in a batch: there both are computed, and one is chosen.
    check(lengths, [x], np.sinh(t) ** 2, [np.sinh(2 * t)], [[2 * np.cosh(2 * t)]])


# entry


@pytest.mark.parametrize(
    ("shape", "axis", "few"),
    [((8, 32), 1, True), ((8, 33), 1, False), ((8, 4, 2), 1, True), ((8, 5, 2), 1, False)],
)
def test_few_entries_are_compared_on_a_tpu(shape, axis, few):

    def own(x):
        index = jnp.ones((*shape[:axis], 1, *shape[axis + 1 :]), int)
        place = lax.broadcasted_iota(index.dtype, shape, axis)
        return xla.entry(
            shape,
            axis,
            lambda: jnp.take_along_axis(x, index, axis),
            lambda: jnp.sum(jnp.where(place == index, x, 0), axis, keepdims=True),
        )

    def gathers(platform):
        traced = jax.jit(own).trace(jnp.ones(shape))
        return hlo.operations(traced.lower(lowering_platforms=(platform,)), "gather")

    assert [gathers(platform) for platform in ("cpu", "cuda", "tpu")] == [1, 1, 1 - few]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_entry_is_itself(dtype):
    scores = jnp.asarray([[inf, 1, nan], [2, -inf, nan], [3, nan, nan]], dtype)
    labels = jnp.array([0, 1, -1])
    where = jnp.array([[True, True, False], [True, True, False], [False, False, True]])
    classes = ClassAxes((1,))
    found = locate(labels, scores, classes, where)
    for platform in ("cpu", "tpu"):
        with choices_for(platform):
            entries = at_label(scores, found, classes)
        assert entries.dtype == dtype
        np.testing.assert_array_equal(entries, [[inf], [-inf], [0]])


# sums_at_once


def moments(sums, x):
    """Sums of what is made of one array."""
    exps = jnp.exp(x)
    one, other, third = sums((exps, jnp.where(exps > 2, exps, 0), exps * x), (1,))
    return one + other + third


def separately(parts, axes):
    return tuple(jnp.sum(x, axes, keepdims=True) for x in parts)


def test_sums_at_once_store_nothing_on_a_cpu():
    at_once, apart = (
        cost(functools.partial(moments, sums), X) for sums in (xla.sums_at_once, separately)
    )
    assert at_once[0] < apart[0] - 0.9
    assert at_once[1] < apart[1] - 1.9


def test_how_many_sums_there_are():
    def count(f):
        traced = jax.jit(functools.partial(moments, f)).trace(X)
        platforms = ("cpu", "tpu", "cuda", "rocm")
        lowered = (traced.lower(lowering_platforms=(p,)).as_text() for p in platforms)
        return [text.count("stablehlo.reduce(") for text in lowered]

    assert count(xla.sums_at_once) == [1, 3, 2, 2]
    assert count(separately) == [3, 3, 3, 3]
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))):
        assert count(xla.sums_at_once) == [3, 3, 2, 2]


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_each_sum_is_of_its_own_terms(platform, dtype):
    parts = [[[3, -4], [inf, 1]], [[0.5, 2], [1, nan]], [[-inf, 2], [-0.0, -0.0]]]
    parts = tuple(jnp.asarray(x, dtype) for x in parts)
    with choices_for(platform):
        found = xla.sums_at_once(parts, (1,))
        slopes = jax.jacrev(lambda *x: xla.sums_at_once(x, (0,)), (0, 1, 2))(*parts)
    for total, x in zip(found, parts, strict=True):
        assert total.dtype == dtype
        np.testing.assert_array_equal(total, np.sum(x, 1, keepdims=True))
    for i, row in enumerate(slopes):
        for j, slope in enumerate(row):
            wanted = np.broadcast_to(np.eye(2)[None, :, None] * (i == j), (1, 2, 2, 2))
            np.testing.assert_array_equal(slope, wanted)


def test_a_sum_that_has_no_derivative_in_a_loop():
    def loss(x, y):
        one, other = xla.sums_at_once((jnp.exp(x), jnp.exp(y)), (0,))
        return (one * other)[0]

    def scanned(x):
        rows = x, jnp.ones_like(x)
        return lax.scan(lambda so_far, row: (so_far + loss(*row), None), 0.0, rows)[0]

    x = jnp.array([[0.5, 1], [0, -1]])
    found = jax.jvp(jax.grad(scanned), (x,), (jnp.ones_like(x),))[1]
    np.testing.assert_allclose(found, np.exp(x) * 2 * np.e, rtol=1e-6)


def test_sums_at_once():
    x = np.array([[-2, -0.25, 0.5, 1], [2, 1, 0.75, -1]], np.float32)
    t = x.astype(np.float64)
    large = np.exp(t) * (np.exp(t) > 2)
    value = np.sum(np.exp(t) * (1 + t) + large, 1)

    def f(x):
        return moments(xla.sums_at_once, x[None])[0, 0]

    slopes, curvatures = np.exp(t) * (2 + t) + large, np.exp(t) * (3 + t) + large
    wanted = value, slopes, slopes, np.stack([np.diag(row) for row in curvatures])

    @jax.jit
    def derivatives(x):
        return [jax.vmap(g)(x) for g in (f, jax.grad(f), jax.jacfwd(f), jax.hessian(f))]

    for mine, reference in zip(derivatives(x), wanted, strict=True):
        np.testing.assert_allclose(mine, reference, rtol=1e-6)
    # JAX's own derivative of a reduction is a tree.
    assert "slice" not in str(jax.make_jaxpr(jax.hessian(f))(x[0]))


# for_few


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda", "rocm"])
def test_only_a_gpu_leaves_nothing_out(platform):
    f = jax.jit(lambda x: xla.for_few(lambda: jnp.sinh(x), lambda: jnp.cosh(x)))
    text = f.trace(jnp.ones(3)).lower(lowering_platforms=(platform,)).as_text()
    is_gpu = platform in ("cuda", "rocm")
    assert ("cosh" in text, "sinh" in text) == (is_gpu, not is_gpu)


# by_sums


def spread(by_sums, x):
    """e (x - mean x) for weights e, with both means at once or one after the other."""
    exps = jnp.exp(x)

    def at_once(x):
        ahead, total = (jnp.sum(jnp.sinh(y), 1, keepdims=True) for y in (exps * x, exps))
        return exps * (x * total - ahead)

    def in_turn(x):
        further = x - jnp.sum(exps * x, 1, keepdims=True)
        return exps * (further - jnp.sum(exps * jnp.cosh(further), 1, keepdims=True))

    return by_sums(at_once, in_turn, x)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda", "rocm"])
def test_only_a_tpu_takes_sums_at_once(platform):
    lowered = jax.jit(functools.partial(spread, xla.by_sums)).trace(X)
    text = lowered.lower(lowering_platforms=(platform,)).as_text()
    assert ("sinh" in text, "cosh" in text) == (platform == "tpu", platform != "tpu")
    # Only a GPU computes again what it need not.
    assert ("stablehlo.minimum" in text) == (platform in ("cuda", "rocm"))


def test_sums_in_turn_store_less_on_a_cpu(monkeypatch):
    x, labels = jnp.zeros((2, 4096, 21)), jnp.zeros((2, 4096, 21))

    def price():
        jax.clear_caches()
        return cost(jax.value_and_grad(lambda x, t: jnp.sum(jaxloss.dice_loss(x, t))), x, labels)

    found = price()
    monkeypatch.setattr(xla, "by_sums", lambda at_once, in_turn, x: at_once(x))
    assert found[1] < 0.85 * price()[1]


# scan


def steps(scan, count, reverse=False):
    """A sine a step, of neighbours, as in the recursions over states of labels."""

    def step(state, x):
        state = jnp.sin(state[2:]) + state[1:-1] * state[:-2] + x
        return jnp.pad(state, (2, 0)), state

    return lambda x: scan(step, jnp.pad(x, (2, 0)), 1 + jnp.arange(1.0 * count), reverse=reverse)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda", "rocm"])
def test_only_on_a_cpu_scan_takes_one_step_at_a_time(platform):
    def turns(scan):
        traced = jax.jit(steps(scan, 48)).trace(jnp.ones(3))
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        return {count for count in (3, 6, 12, 48) if f"dense<{count}> : tensor<i32>" in text}

    assert turns(xla.scan) == {{"cpu": 48, "tpu": 12}.get(platform, 6)}
    more = functools.partial(xla.scan, on_gpu=16)
    assert turns(more) == {{"cpu": 48, "tpu": 12}.get(platform, 3)}
    assert turns(lax.scan) == {48}


def test_on_a_cpu_four_steps_at_once_are_computed_again_and_again():
    def flops(scan):
        return hlo.cost(hlo.compiled(steps(scan, 32), jnp.ones(1000)), "flops")

    assert flops(by_four) > 6 * flops(xla.scan)


# The direction is handed on to JAX's own scan, whatever the count.
@pytest.mark.parametrize(
    ("count", "reverse"), [(0, False), (1, True), (3, True), (4, False), (9, False), (9, True)]
)
def test_scan(count, reverse):
    x = jnp.array([0.5, -1.0, 2.0])

    @jax.jit
    def everything(x):
        scans = [steps(scan, count, reverse) for scan in (lax.scan, xla.scan, by_four)]
        ways = (lambda f: f, jax.jacfwd, jax.jacrev, jax.hessian)
        return [[derive(f)(x) for derive in ways] for f in scans]

    wanted, *found = everything(x)
    for one in found:
        chex.assert_trees_all_close(one, wanted, rtol=1e-5)


def by_four(*args, **options):
    """As it is elsewhere."""
    return lax.scan(*args, **options, unroll=4)


# by_count


def by_count(step, count, start):
    return xla.by_count(count, lambda repeat: repeat(step, start))


def sum_of_sinh(loop):
    """The sum of sinh(k x) over k below `count`."""

    def f(x, count):
        def step(k, total):
            return total + jnp.where(k < count, jnp.sinh(k * x), 0)

        return loop(step, count, jnp.zeros_like(x))

    return f


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda", "rocm"])
def test_only_on_a_cpu_a_loop_takes_one_step_at_a_time(platform):
    def taken(loop):
        traced = jax.jit(sum_of_sinh(loop)).trace(jnp.ones(3), jnp.int32(5))
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        return [text.count(name) for name in ("chlo.sinh", "stablehlo.while", "stablehlo.case")]

    def chosen(step, count, start):
        """A choice of platforms has cases of its own."""
        return lax.platform_dependent(cpu=lambda: start, default=lambda: step(0, start))

    def plain(step, count, start):
        return lax.fori_loop(0, count, step, start)

    # Elsewhere four stand in one branch, and four in the loop of the other.
    cases = taken(chosen)[2]
    assert taken(by_count) == ([1, 1, cases] if platform == "cpu" else [8, 1, cases + 1])
    assert taken(plain) == [1, 1, 0]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 9])
@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_by_count(count, platform):
    x = np.array([0.5, -1.0, 2.0])
    with choices_for(platform):
        found = jax.jit(sum_of_sinh(by_count))(jnp.asarray(x), jnp.int32(count))
    np.testing.assert_allclose(found, sum(np.sinh(k * x) for k in range(count)), rtol=1e-5)


@pytest.mark.parametrize("most", [4, 5])
def test_steps_of_labels_may_go_on_behind_the_last(most):
    scores = np.random.default_rng(0).normal(size=(most + 1, 5)).astype(np.float32)
    labels = np.full((most + 1, 5), -1, np.int32)
    for count in range(most + 1):
        labels[count, :count] = np.arange(count)[::-1]
    labels[2, 3:] = 7  # Not read.
    labels[3, 1] = 7  # No class.

    def results():
        return jax.value_and_grad(
            lambda x: jnp.nansum(jaxloss.multilabel_margin_loss(x, labels, axis=-1))
        )(jnp.asarray(scores))

    wanted = results()
    jax.clear_caches()
    with choices_for("cuda"):
        found = results()
    jax.clear_caches()
    chex.assert_trees_all_close(found, wanted, rtol=1e-6)
    assert np.isnan(wanted[1][3]).all()
