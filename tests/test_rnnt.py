"""The transducer: every path by brute force, thousands of frames, impossible rows, padding."""

# pyright: reportArgumentType=false
# What type checkers do not take is a part of the subject.

import functools
import itertools
import math

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax import export

import jaxloss
from jaxloss import functional as F


def normal(*shape, strength=1.0):
    return (np.random.default_rng(0).normal(size=shape) * strength).astype(np.float32)


def whole(logits, labels, **options):
    """Losses of sequences without padding."""
    paddings = jnp.zeros(logits.shape[:-2]), jnp.zeros(labels.shape)
    return jaxloss.rnnt_loss(logits, paddings[0], labels, paddings[1], **options)


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(f, x, *rest):
    value, pull = jax.vjp(lambda x: f(x, *rest), x)
    return value, pull(jnp.ones_like(value))[0]


def by_brute_force(logits, labels, blank_id):
    """Loss, gradient, and the gradient of the labels' steps alone, from each path."""
    frames, rows, _ = logits.shape
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    total, paths = 0.0, []
    # A path is known by the steps at which it reads a label; the last leaves the last frame.
    for reads in itertools.combinations(range(frames + rows - 2), rows - 1):
        t = u = 0
        mass, steps = 1.0, []
        for step in range(frames + rows - 1):
            symbol = labels[u] if step in reads else blank_id
            mass *= probs[t, u, symbol]
            steps.append((t, u, symbol))
            t, u = (t, u + 1) if step in reads else (t + 1, u)
        total += mass
        paths.append((mass, steps))
    shares = np.zeros((2, *logits.shape))
    for mass, steps in paths:
        for t, u, symbol in steps:
            step = probs[t, u].copy()
            step[symbol] -= 1
            shares[int(symbol != blank_id), t, u] += mass / total * step
    return -math.log(total), shares.sum(0), shares[1]


@pytest.mark.parametrize("blank_id", [0, 2])
def test_sum_over_all_paths(blank_id, x64):
    one, other = {0, 1, 2} - {blank_id}
    cases = [*itertools.product((1, 2, 4), ([], [other], [one, one, other]))]
    logits = np.random.default_rng(0).normal(size=(len(cases), 4, 4, 3))
    paddings = np.array([np.arange(4) >= frames for frames, _ in cases])
    missing = np.array([np.arange(3) >= len(own) for _, own in cases])
    labels = np.array([[*own, 99, 99, 99][:3] for _, own in cases])

    @jax.jit
    def found(x, fastemit):
        f = functools.partial(jaxloss.rnnt_loss, blank_id=blank_id, fastemit=fastemit)
        return value_and_gradient(f, x, paddings, labels, missing)

    (value, slope), (same, more) = found(logits, 0.0), found(logits, 0.25)
    np.testing.assert_array_equal(same, value)
    for i, (frames, own) in enumerate(cases):
        part = logits[i, :frames, : len(own) + 1]
        loss, gradient, of_labels = by_brute_force(part, own, blank_id)
        for mine, brute in zip(oracle.rnnt(part, own, blank_id), (loss, gradient), strict=True):
            np.testing.assert_allclose(mine, brute, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(value[i], loss, rtol=1e-12)
        for mine, wanted in ((slope[i], gradient), (more[i], gradient + 0.25 * of_labels)):
            mine = mine[:frames, : len(own) + 1]
            np.testing.assert_allclose(mine, wanted, rtol=1e-12, atol=1e-13)


def test_second_order_inside_a_scan(x64):
    """In both modes, with ties, and of the gradient that `fastemit` changes."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 3))).at[0, 1].set(0.0)

    def loss(x, fastemit=0.5):
        return whole(x, np.array([1, 2]), fastemit=fastemit)

    def scanned(x):
        return jax.lax.scan(lambda total, x: (total + loss(x), None), 0.0, x[None])[0]

    @jax.jit
    def derivatives(x):
        slopes, tangent = jax.grad(loss), jnp.cos(jnp.arange(x.size)).reshape(x.shape)
        steps = 1e-6 * jnp.eye(x.size).reshape(-1, *x.shape)
        ahead, behind = jnp.split(jax.vmap(slopes)(x[None] + jnp.concatenate([steps, -steps])), 2)
        seconds = [second(jax.jacrev(scanned))(x) for second in (jax.jacrev, jax.jacfwd)]
        first = [slopes(x, fastemit) for fastemit in (0.5, 1.5)]
        by_fastemit = jax.grad(loss, 1)(x, 0.5), jax.jacfwd(slopes, 1)(x, 0.5)
        along = jax.jvp(loss, (x,), (tangent,))[1]
        return (ahead - behind) / 2e-6, seconds, first, by_fastemit, (along, tangent)

    differences, seconds, (slope, more), by_fastemit, (along, tangent) = derivatives(x)
    for found in seconds:  # By the second, along the first.
        wanted = differences.reshape(x.shape * 2)
        np.testing.assert_allclose(jnp.moveaxis(found, (3, 4, 5), (0, 1, 2)), wanted, atol=1e-8)
    # The gradient is linear in λ, whose own derivative of the value is 0.
    assert by_fastemit[0] == 0
    np.testing.assert_allclose(by_fastemit[1], more - slope, atol=1e-12)
    np.testing.assert_allclose(along, np.sum(slope * tangent), rtol=1e-12)


def peaked(strength, frames, labels):
    """The logits of a trained model: certain of a path, but for a few wrong symbols."""
    logits = normal(frames, len(labels) + 1, 8)
    logits[..., 0] += strength
    every = frames // len(labels)
    for u, label in enumerate(labels):
        logits[every * u + 3, u, label] += 2 * strength
    wrong = np.random.default_rng(1).random(frames) < 0.01
    logits[wrong, :, 7] += strength
    return logits


@functools.cache
def optimised():
    """What an optimiser could break is tested as optimised code."""
    shapes = (
        jax.ShapeDtypeStruct((2000, 201, 8), jnp.float32),
        jax.ShapeDtypeStruct((200,), jnp.int32),
    )
    return hlo.optimised(functools.partial(value_and_gradient, whole), *shapes)


@pytest.mark.parametrize(
    ("kind", "strength"),
    [("normal", 1), ("normal", 100), ("peaked", 5), ("peaked", 12)],
)
def test_float32_is_accurate(kind, strength):
    labels = np.random.default_rng(0).integers(1, 8, 200).astype(np.int32)
    if kind == "normal":
        logits = normal(2000, 201, 8, strength=strength)
        logits += np.linspace(-1e3, 1e3, 2000, dtype=np.float32)[:, None, None]
    else:
        logits = peaked(strength, 2000, labels)
    value, gradient = optimised()(logits, labels)
    loss, wanted = oracle.rnnt(logits, labels)
    assert value >= 0
    np.testing.assert_allclose(value, loss, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(gradient, wanted, rtol=0, atol=2e-6)


def test_never_negative():
    labels = np.array([1, 2, 1, 2])
    for strength in (10, 20, 30, 60, 200):
        logits = normal(9, 5, 3)
        for u, label in enumerate(labels):
            logits[:, u, 0] += strength
            logits[2 * u + 1, u, label] += 2 * strength
        logits[:, -1, 0] += strength
        value, gradient = value_and_gradient(whole, jnp.asarray(logits), labels)
        loss, wanted = oracle.rnnt(logits, labels)
        assert value >= 0
        np.testing.assert_allclose(value, loss, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(gradient, wanted, rtol=0, atol=1e-6)


FRAMES, LABELS, SYMBOLS = 5, 3, 4
ROWS = {  # Labels, how many of them and of the frames count, and the frames where 2 is impossible.
    "plain": ([1, 2, 3], 3, 5, ()),
    "repeated": ([2, 2, 2], 3, 5, ()),
    "more labels than frames": ([1, 1, 3], 3, 1, ()),
    "left-over labels": ([2, -7, 99], 1, 4, ()),
    "no labels": ([99, 99, 99], 0, 4, ()),
    "no frames": ([1, 2, 3], 2, 0, ()),
    "nothing": ([1, 2, 3], 0, 0, ()),
    "one frame": ([2, 1, 1], 1, 1, ()),
    "impossible now and then": ([2, 3, 2], 3, 5, (0, 3)),
    "impossible": ([3, 2, 0], 2, 5, range(5)),
}


def batch():
    """All the rows, with NaN in every frame and row of labels that does not count."""
    labels, present, frames, without = zip(*ROWS.values(), strict=True)
    logits = normal(len(ROWS), FRAMES, LABELS + 1, SYMBOLS)
    for row, count, own, holes in zip(logits, frames, present, without, strict=True):
        row[list(holes), :, 2] = -np.inf
        row[count:] = np.nan
        row[:, own + 1 :] = np.nan
    return logits, np.array(labels), np.array(frames), np.array(present)


def core(logits, labels, frames, present):
    columns = np.arange(FRAMES)[None], np.arange(LABELS)[None]
    paddings = columns[0] >= frames[:, None], columns[1] >= present[:, None]
    return jaxloss.rnnt_loss(logits, paddings[0], labels, paddings[1])


def functional(logits, labels, frames, present, **options):
    return F.rnnt_loss(
        logits, labels, frames, present, **{"blank": 0, "reduction": "none"} | options
    )


def of_log_probs(logits, *rest):
    """Behind a log_softmax it is the same, but for what that makes of padding."""
    real = jnp.where(jnp.isnan(logits), 0, logits)
    return functional(jax.nn.log_softmax(real), *rest, fused_log_softmax=False)


@pytest.mark.parametrize("door", [core, functional, of_log_probs])
def test_each_row_is_as_if_alone_without_padding(door):
    logits, *rest = batch()
    value, gradient = value_and_gradient(door, jnp.asarray(logits), *rest)
    for i, (name, (labels, present, frames, _)) in enumerate(ROWS.items()):
        loss, wanted = oracle.rnnt(logits[i, :frames, : present + 1], labels[:present])
        np.testing.assert_allclose(value[i], loss, rtol=1e-6, err_msg=name)
        mine = np.array(gradient[i])
        np.testing.assert_allclose(mine[:frames, : present + 1], wanted, atol=1e-6, err_msg=name)
        mine[:frames, : present + 1] = 0
        assert not np.any(mine), name


def test_second_order_of_awkward_rows():
    logits, *rest = batch()
    finite = core(logits, *rest) < jnp.inf

    @jax.jit
    def second(x):
        def gradient(x):
            return jax.grad(lambda x: jnp.sum(core(x, *rest), where=finite))(x)

        forward = jax.jvp(gradient, (x,), (jnp.ones_like(x) * 0.3,))[1]
        return forward, jax.grad(lambda x: jnp.sum(gradient(x) ** 2))(x)

    for found in second(jnp.asarray(logits)):
        assert np.all(np.isfinite(found))
        assert not np.any(np.where(np.isnan(logits), found, 0))
        assert np.any(found)


@pytest.mark.parametrize("bad", [-1, SYMBOLS, 2**31 - 1])
@pytest.mark.parametrize("door", [core, functional])
def test_bad_label_is_nan_in_its_row_alone(door, bad):
    logits, labels, frames, present = batch()
    logits = jnp.asarray(logits)
    value, gradient = value_and_gradient(door, logits, labels, frames, present)
    wrong = labels.copy()
    wrong[0, 1] = bad
    value2, gradient2 = value_and_gradient(door, logits, wrong, frames, present)
    assert np.isnan(value2[0])
    assert np.all(np.isnan(gradient2[0]))
    np.testing.assert_array_equal(value2[1:], value[1:])
    np.testing.assert_array_equal(gradient2[1:], gradient[1:])


def test_padding_anywhere_is_deleted():
    frames, labels = np.array([1, 2, 4]), np.array([0, 3])
    paddings, missing = np.ones(6), np.ones(4)
    paddings[frames] = missing[labels] = 0
    rows = np.array([0, *(labels + 1)])
    kept = np.ix_(frames, rows)
    logits, spread = np.full((6, 5, 4), np.nan, np.float32), np.array([3, 99, -5, 1])
    logits[kept] = normal(3, 3, 4)
    value, gradient = value_and_gradient(
        jaxloss.rnnt_loss, jnp.asarray(logits), paddings, spread, missing
    )
    wanted = value_and_gradient(whole, jnp.asarray(logits[kept]), spread[labels])
    np.testing.assert_allclose(value, wanted[0], rtol=1e-6)
    np.testing.assert_allclose(gradient[kept], wanted[1], atol=1e-7)
    gradient = np.array(gradient)
    gradient[kept] = 0
    assert not np.any(gradient)


def test_any_leading_dimensions():
    logits, labels = normal(2, 2, 3, 3, 4), np.random.default_rng(0).integers(1, 4, (2, 2, 2))
    many = whole(logits, labels)
    assert many.shape == (2, 2)
    np.testing.assert_allclose(whole(logits[1, 0], labels[1, 0]), many[1, 0], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.vmap(whole))(logits, labels), many, rtol=1e-6)
    labels = jnp.asarray(labels)  # Not of 64 bits, which not all JAX exports.
    specs = export.symbolic_args_specs((logits, labels), ["n,m,3,3,4", "n,m,2"])
    anywhere = export.export(jax.jit(whole))(*specs)
    np.testing.assert_allclose(anywhere.call(logits, labels), many, rtol=1e-6)


@pytest.mark.parametrize("shape", [(0, 2, 1, 3), (2, 0, 1, 3), (2, 0, 0, 3), (2, 2, 0, 1)], ids=str)
def test_empty_dimensions(shape):
    examples, frames, size, classes = shape
    logits = jnp.zeros((examples, frames, size + 1, classes))
    value, gradient = value_and_gradient(whole, logits, jnp.ones((examples, size), int))
    wanted = frames * np.log(classes) if frames else (np.inf if size else 0.0)
    np.testing.assert_allclose(value, np.full(examples, wanted), rtol=1e-6)
    assert gradient.shape == logits.shape
    assert np.all(np.isfinite(gradient))


# The example of warp-transducer, which torchaudio's documentation and tests took over.
EXAMPLE = np.full((1, 2, 3, 5), 0.1, np.float32)
for place, score in {
    (0, 0, 1): 0.6,
    (0, 1, 2): 0.6,
    (0, 2, 2): 0.2,
    (0, 2, 3): 0.8,
    (1, 0, 1): 0.6,
    (1, 1, 2): 0.2,
    (1, 2, 0): 0.7,
    (1, 2, 2): 0.2,
}.items():
    EXAMPLE[0][place] = score
EXAMPLE_GRADIENT = {
    (0, 0): [0.17703132, -0.39992708, 0.17703132, 0.17703132, -0.13116692],
    (0, 1): [0.12247062, 0.12247062, -0.181684, 0.12247062, -0.1857276],
    (1, 1): [0.12073967, 0.12073967, -0.48295838, 0.12073967, 0.12073967],
    (1, 2): [0.30741188, 0.16871123, 0.18645471, 0.16871123, -0.83128875],
}


def test_the_example_of_torchaudio():
    rest = np.array([[1, 2]], np.int32), np.array([2], np.int32), np.array([2], np.int32)
    value, gradient = jax.value_and_grad(F.rnnt_loss)(EXAMPLE, *rest)
    np.testing.assert_allclose(value, 5.09566688538, rtol=1e-7)
    for (t, u), wanted in EXAMPLE_GRADIENT.items():
        np.testing.assert_allclose(gradient[0, t, u], wanted, atol=5e-7)
    log_probs = jax.nn.log_softmax(EXAMPLE)
    for blank in (-1, 4):
        found = F.rnnt_loss(log_probs, *rest, blank, fused_log_softmax=False)
        np.testing.assert_allclose(found, 5.09566688538, rtol=1e-6)
    lists = F.rnnt_loss(EXAMPLE, [[1, 2]], [2], (2,))
    np.testing.assert_array_equal(lists, value)


def test_a_gradient_of_log_probabilities_is_minus_the_occupancy(x64):
    logits, labels = jnp.asarray(normal(1, 3, 3, 4), jnp.float64), jnp.array([[2, 1]])

    def f(x):
        return F.rnnt_loss(x, labels, [3], [2], 0, fused_log_softmax=False)

    log_probs = jax.nn.log_softmax(logits)
    slope = jax.grad(f)(log_probs)
    numbers = oracle.gradient(lambda x: np.asarray(f(jnp.asarray(x))), log_probs)
    np.testing.assert_allclose(slope, numbers, atol=1e-9)
    assert np.all(slope <= 0)
    np.testing.assert_allclose(np.sum(slope), -5, rtol=1e-12)  # T + U steps of every path.


def test_factors_above_1_may_make_it_negative():
    loss = F.rnnt_loss(
        jnp.full((1, 6, 1, 2), 0.1), jnp.ones((1, 0), int), [6], [0], fused_log_softmax=False
    )
    np.testing.assert_allclose(loss, -0.6, rtol=1e-6)


def test_clamp_holds_the_gradient_of_each_example():
    logits, *rest = batch()
    logits, rest = jnp.asarray(logits[:4]), [x[:4] for x in rest]

    def mean(x, clamp):
        return F.rnnt_loss(x, *rest, blank=0, clamp=clamp)

    @jax.jit
    def clamped(clamp):
        value, gradient = jax.value_and_grad(mean)(logits, clamp)
        towards = jnp.ones_like(logits).at[..., 0].set(2.0)
        return value, gradient, jax.jvp(lambda x: mean(x, clamp), (logits,), (towards,))[1]

    losses, pull = jax.vjp(lambda x: functional(x, *rest), logits)
    (free,) = pull(jnp.ones_like(losses))
    assert np.abs(free).max() > 0.2
    for clamp in (0.2, -1.0, 0.0):
        value, gradient, along = clamped(clamp)
        most = clamp if clamp > 0 else np.inf
        wanted = np.clip(free, -most, most) / 4
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(value, np.mean(losses), rtol=1e-6)
        np.testing.assert_allclose(along, np.sum(wanted * [2, 1, 1, 1]), rtol=1e-5)
    outside = jax.grad(mean)(logits, 0.2)
    np.testing.assert_allclose(outside, np.clip(free, -0.2, 0.2) / 4, rtol=1e-5, atol=1e-7)


def test_lengths_that_do_not_fit_are_nan_in_their_row_alone():
    logits, labels, frames, present = (np.nan_to_num(x[:3]) for x in batch())
    for wrong in (-1, 6):
        lengths = np.where(np.arange(3) == 2, wrong, frames)
        assert np.isnan(functional(logits, labels, lengths, present)).tolist() == [0, 0, 1]
        lengths = np.where(np.arange(3) == 2, wrong, present)
        assert np.isnan(functional(logits, labels, frames, lengths)).tolist() == [0, 0, 1]
