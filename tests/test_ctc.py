"""CTC: every path by brute force, thousands of frames, impossible alignments, and padding."""

import functools
import itertools
import math

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import jaxloss
from jaxloss import functional as F


def padded_from(lengths, size):
    frames = jnp.arange(size).reshape(*[1] * jnp.ndim(lengths), size)
    return frames >= jnp.expand_dims(jnp.asarray(lengths), -1)


def core(logits, labels, frames, present):
    """Losses of sequences of which only the first frames and labels take part."""
    paddings = padded_from(frames, logits.shape[-2]), padded_from(present, labels.shape[-1])
    return jaxloss.ctc_loss(logits, paddings[0], labels, paddings[1])


def functional(log_probs, labels, frames, present):
    log_probs = jnp.swapaxes(log_probs, 0, 1)
    return F.ctc_loss(log_probs, labels, frames, present, reduction="none")


def behind_softmax(logits, *rest):
    return functional(jax.nn.log_softmax(logits), *rest)


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(f, x, *rest):
    value, pull = jax.vjp(lambda x: f(x, *rest), x)
    return value, pull(jnp.ones_like(value))[0]


def by_brute_force(logits, labels, blank_id):
    """Loss, gradient and alignment from each path of one symbol per frame."""
    frames, classes = logits.shape
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    total, shares, alignment = 0.0, np.zeros(logits.shape), np.zeros((frames, len(labels)))
    for path in itertools.product(range(classes), repeat=frames):
        runs = [(symbol, len(list(run))) for symbol, run in itertools.groupby(path)]
        if [symbol for symbol, _ in runs if symbol != blank_id] != labels:
            continue
        mass = np.prod(probs[range(frames), path])
        total += mass
        shares[range(frames), path] += mass
        frame = label = 0
        for symbol, length in runs:
            if symbol != blank_id:
                alignment[frame : frame + length, label] += mass
                label += 1
            frame += length
    if not total:
        return math.inf, 0 * shares, alignment
    return -math.log(total), probs - shares / total, alignment / total


# A blank elsewhere is another program, whatever the number of frames.
@pytest.mark.parametrize(("frames", "blank_id"), [(0, 2), (1, 0), (5, 0), (5, 2)])
def test_sum_over_all_paths(frames, blank_id, x64):
    one, other = {0, 1, 2} - {blank_id}
    of_labels = [], [one], [other, one], [one, one], [one, other, one], [other, other, other]

    @jax.jit
    def found(*args):
        f = functools.partial(jaxloss.ctc_loss, blank_id=blank_id)
        return *value_and_gradient(f, *args), jaxloss.ctc_alignment(*args, blank_id=blank_id)

    for count, labels in itertools.product({frames, min(frames, 3), min(frames, 1)}, of_labels):
        scores, size = np.random.default_rng(count).normal(size=(count, 3)), len(labels)
        wanted = by_brute_force(scores, labels, blank_id)
        for mine, brute in zip(oracle.ctc(scores, labels, blank_id), wanted, strict=True):
            np.testing.assert_allclose(mine, brute, rtol=1e-12, atol=1e-13)
        logits = np.full((frames, 3), np.nan)
        logits[:count] = scores
        padded, missing = np.array([*labels, 99, 99, 99])[:3], np.arange(3) >= size
        value, gradient, alignment = found(logits, np.arange(frames) >= count, padded, missing)
        mine = value, gradient[:count], alignment[:count, :size]
        for part, brute in zip(mine, wanted, strict=True):
            np.testing.assert_allclose(part, brute, rtol=1e-12, atol=1e-13)
        assert not np.any(gradient[count:])
        assert not np.any(alignment[count:])
        assert not np.any(alignment[:, size:])


def normal(*shape, strength=1.0):
    return (np.random.default_rng(0).normal(size=shape) * strength).astype(np.float32)


def spelled(size, symbols):
    return np.random.default_rng(size).integers(1, symbols, (1, size)).astype(np.int32)


def peaked(frames, classes, labels, strength):
    """The logits of a trained model: almost certain of a path, but for a few wrong symbols."""
    rng = np.random.default_rng(1)
    best = np.zeros(frames, int)
    best[2 * np.sort(rng.choice(frames // 2, labels.size, replace=False))] = labels
    best = np.where(rng.random(frames) < 0.02, rng.integers(0, classes, frames), best)
    logits = normal(1, frames, classes)
    logits[0, range(frames), best] += strength
    return logits


def long_sequences():
    """Logits, labels, and how many frames take part."""
    for frames, classes, size in ((200, 30, 30), (5000, 30, 300), (2300, 5, 1100), (500, 5000, 60)):
        labels, name = spelled(size, classes), f"{frames}x{classes}-{size}"
        yield name, normal(1, frames, classes), labels, frames
        if classes == 30:
            for strength in (5.0, 12.0):
                logits = peaked(frames, classes, labels, strength)
                yield f"{name}-peaked-{strength:g}", logits, labels, frames
    shift = np.linspace(-1e4, 1e4, 200, dtype=np.float32)[:, None]
    yield "shifted", normal(1, 200, 30) + shift, spelled(30, 30), 200
    yield "strong", normal(1, 200, 30, strength=100), spelled(30, 30), 200
    labels = spelled(30, 3)
    least = labels.size + int(np.sum(labels[0, 1:] == labels[0, :-1]))
    for slack in (0, 1):
        yield f"tight-{slack}", normal(1, 200, 30, strength=2), labels, least + slack


LONG = {name: (logits, labels, frames) for name, logits, labels, frames in long_sequences()}


def compiled(f, *args):
    """What an optimiser could break is tested as optimised code: one program for each shape."""
    key = f, *((x.shape, x.dtype) for x in args)
    if key not in PROGRAMS:
        PROGRAMS[key] = hlo.optimised(functools.partial(value_and_gradient, f), *args)
    return PROGRAMS[key](*args)


PROGRAMS = {}


def padded(logits, labels):
    """With zeros behind, so that the program of the longest sequence serves a shorter."""
    size = LONG["5000x30-300"][0].shape[1], LONG["5000x30-300"][1].shape[1]
    more = [(0, 0), (0, size[0] - logits.shape[1]), (0, 0)]
    return np.pad(logits, more), np.pad(labels, [(0, 0), (0, size[1] - labels.shape[1])])


@pytest.mark.parametrize("name", LONG)
def test_float32_is_accurate(name):
    logits, labels, frames = LONG[name]
    symbols = labels[0]
    loss, gradient, _ = oracle.ctc(logits[0, :frames], symbols)
    lengths = np.array([frames]), np.array([symbols.size])
    if logits.shape[2] == 30:  # As many symbols as the longest has.
        logits, labels = padded(logits, labels)
    value, slope = compiled(core, logits, labels, *lengths)
    np.testing.assert_allclose(value[0], loss, rtol=1e-7)
    behind, slope_behind = compiled(behind_softmax, logits, labels, *lengths)
    np.testing.assert_allclose(behind[0], loss, rtol=1e-6)
    # What torch's door is given are log probabilities already rounded, which hardly sum to 1.
    given = np.asarray(jax.nn.log_softmax(logits), np.float64)[0, :frames]
    excess = np.log(np.exp(given).sum(-1)).sum()
    np.testing.assert_allclose(behind[0], oracle.ctc(given, symbols)[0] - excess, rtol=1e-7)
    for mine in (slope, slope_behind):
        np.testing.assert_allclose(mine[0, :frames], gradient, rtol=0, atol=2e-6)
        assert not np.any(mine[0, frames:])


def test_never_negative():
    labels, frames = spelled(30, 30), np.array([200])
    lowest = np.inf
    for strength in (10, 20, 30, 60, 200):
        best = np.zeros(200, int)
        best[: 2 * labels.size : 2] = labels
        logits = normal(1, 200, 30)
        logits[0, range(200), best] += strength
        lengths = frames, np.array([labels.size])
        value, gradient = compiled(core, *padded(logits, labels), *lengths)
        lowest = min(lowest, float(value[0]))
        wanted = oracle.ctc(logits[0], labels[0])
        np.testing.assert_allclose(value[0], wanted[0], rtol=1e-6, atol=1e-10)
        np.testing.assert_allclose(gradient[0, :200], wanted[1], rtol=0, atol=1e-6)
    assert lowest >= 0


FRAMES, LABELS = 9, 4
ROWS = {  # Labels, how many of them and of the frames count, and the frames where 2 is impossible.
    "plain": ([1, 2, 3, 2], 4, 9, ()),
    "repeated": ([1, 1, 2, 2], 4, 9, ()),
    "tight": ([1, 1, 2, 3], 4, 5, ()),
    "too short": ([1, 1, 2, 2], 4, 5, ()),
    "left-over labels": ([2, 3, -7, 99], 2, 7, ()),
    "no labels": ([99, 99, 99, 99], 0, 7, ()),
    "no frames": ([1, 2, 3, 3], 2, 0, ()),
    "nothing": ([1, 2, 3, 3], 0, 0, ()),
    "one frame": ([2, 1, 1, 1], 1, 1, ()),
    "impossible now and then": ([2, 3, 2, 0], 3, 9, (0, 3, 4, 5)),
    "impossible": ([2, 3, 0, 0], 2, 9, range(9)),
}


def batch():
    """All the rows, with NaN in every frame that does not count."""
    labels, present, frames, without = zip(*ROWS.values(), strict=True)
    logits = normal(len(ROWS), FRAMES, 5)
    for row, count, holes in zip(logits, frames, without, strict=True):
        row[list(holes), 2] = -np.inf
        row[count:] = np.nan
    return logits, np.array(labels), np.array(frames), np.array(present)


@pytest.mark.parametrize("door", [core, functional])
def test_each_row_is_as_if_alone_without_padding(door):
    logits, *rest = batch()
    probs = np.asarray(jax.nn.softmax(logits))
    scores = jnp.asarray(logits if door is core else jax.nn.log_softmax(logits))
    value, gradient = value_and_gradient(door, scores, *rest)
    for i, (name, row) in enumerate(ROWS.items()):
        labels, present, frames, _ = row
        loss, wanted, _ = oracle.ctc(logits[i, :frames], labels[:present])
        if door is functional and loss < math.inf:
            wanted = wanted - probs[i, :frames]  # The derivative proper: minus the occupancies.
        np.testing.assert_allclose(value[i], loss, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(gradient[i, :frames], wanted, atol=1e-6, err_msg=name)
        assert not np.any(gradient[i, frames:]), name
    spared = jax.jit(jax.vmap(core))(*batch()) if door is core else value
    np.testing.assert_allclose(spared, value, rtol=1e-6)


def test_second_order_of_awkward_rows():
    logits, *rest = batch()

    @jax.jit
    def second(x):
        finite = core(x, *rest) < jnp.inf

        def gradient(x):
            return jax.grad(lambda x: jnp.sum(core(x, *rest), where=finite))(x)

        forward = jax.jvp(gradient, (x,), (jnp.ones_like(x) * 0.3,))[1]
        return forward, jax.grad(lambda x: jnp.sum(gradient(x) ** 2))(x)

    forward, backward = second(logits)
    for found in (forward, backward):
        assert np.all(np.isfinite(found))
        assert not np.any(np.where(np.isnan(logits), found, 0))
    assert np.any(backward)


def test_hessian_inside_a_scan(x64):
    rest = np.array([[1, 2]]), np.array([4]), np.array([2])
    x = np.random.default_rng(0).normal(size=(1, 4, 3))
    x[0, 1] = 0  # Ties.

    def loss(x):
        return core(x, *rest)[0]

    def scanned(x):
        return jax.lax.scan(lambda total, x: (total + loss(x), None), 0.0, x[None])[0]

    @jax.jit
    def derivatives(x, shifted):
        seconds = [second(jax.jacrev(scanned))(x) for second in (jax.jacrev, jax.jacfwd)]
        return seconds, jax.vmap(jax.grad(loss))(shifted)

    steps = 1e-6 * np.eye(x.size).reshape(-1, *x.shape)
    seconds, slopes = derivatives(x, x[None] + np.concatenate([steps, -steps]))
    ahead, behind = np.split(np.asarray(slopes), 2)
    for found in seconds:
        np.testing.assert_allclose(found, ((ahead - behind) / 2e-6).reshape(x.shape * 2), atol=1e-8)


@pytest.mark.parametrize("bad", [-1, 5, 2**31 - 1])
@pytest.mark.parametrize("door", [core, functional])
def test_bad_label_is_nan_in_its_row_alone(door, bad):
    logits, labels, frames, present = batch()
    scores = jnp.asarray(logits if door is core else jax.nn.log_softmax(logits))
    value, gradient = value_and_gradient(door, scores, labels, frames, present)
    wrong = labels.copy()
    wrong[0, 1] = bad
    others = np.arange(len(labels)) > 0
    value2, gradient2 = value_and_gradient(door, scores, wrong, frames, present)
    assert np.isnan(value2[0])
    assert np.all(np.isnan(gradient2[0, : frames[0]]))
    np.testing.assert_array_equal(value2[others], value[others])
    np.testing.assert_array_equal(gradient2[others], gradient[others])


def test_lengths_that_do_not_fit_are_nan_in_their_row_alone():
    logits, labels, frames, present = (x[:4] for x in batch())
    scores = jnp.asarray(jax.nn.log_softmax(np.nan_to_num(logits)))
    for wrong in (-1, 10):
        lengths = np.where(np.arange(4) == 2, wrong, frames)
        assert np.isnan(functional(scores, labels, lengths, present)).tolist() == [0, 0, 1, 0]
        lengths = np.where(np.arange(4) == 2, wrong, present)
        assert np.isnan(functional(scores, labels, frames, lengths)).tolist() == [0, 0, 1, 0]


def test_padding_anywhere_is_deleted():
    frames, labels = np.array([0, 1, 3, 4, 6, 8]), np.array([3, 1, 3])
    paddings = np.ones(9)
    paddings[frames] = 0
    logits = np.where(paddings[:, None] == 0, normal(9, 5), np.float32(np.nan))
    spread, missing = np.array([99, 3, 1, -5, 3]), np.array([1, 0, 0, 1, 0])
    whole = jnp.asarray(logits[frames])
    value, gradient = value_and_gradient(
        jaxloss.ctc_loss, jnp.asarray(logits), paddings, spread, missing
    )
    wanted = value_and_gradient(jaxloss.ctc_loss, whole, np.zeros(6), labels, np.zeros(3))
    np.testing.assert_allclose(value, wanted[0], rtol=1e-6)
    np.testing.assert_allclose(gradient[frames], wanted[1], atol=1e-7)
    assert not np.any(np.delete(gradient, frames, 0))
    alignment = np.asarray(jaxloss.ctc_alignment(logits, paddings, spread, missing))
    own = alignment[frames][:, missing == 0]
    np.testing.assert_allclose(
        own, jaxloss.ctc_alignment(whole, np.zeros(6), labels, np.zeros(3)), atol=1e-6
    )
    np.testing.assert_allclose(alignment.sum(), own.sum(), rtol=1e-6)


def test_any_leading_dimensions():
    logits, labels = normal(2, 3, 7, 4), spelled(18, 4).reshape(2, 3, 3)
    args = logits, np.zeros((2, 3, 7)), labels, np.zeros((2, 3, 3))
    for f, shape in ((jaxloss.ctc_loss, ()), (jaxloss.ctc_alignment, (7, 3))):
        many = f(*args)
        assert many.shape == (2, 3, *shape)
        np.testing.assert_allclose(f(*(x[1, 2] for x in args)), many[1, 2], rtol=1e-5)
        np.testing.assert_allclose(jax.vmap(jax.vmap(f))(*args), many, rtol=1e-5)


@pytest.mark.parametrize(
    "shape", [(0, 5, 3, 2), (2, 0, 3, 2), (2, 5, 3, 0), (2, 5, 1, 0), (0, 0, 3, 0)], ids=str
)
def test_empty_dimensions(shape):
    examples, frames, classes, size = shape
    logits, labels = np.zeros((examples, frames, classes), np.float32), np.ones((examples, size))
    rest = labels.astype(np.int32), np.full(examples, frames), np.full(examples, size)
    wanted = frames * np.log(classes) if frames else np.inf
    for door in (core, behind_softmax):
        value, gradient = value_and_gradient(door, jnp.asarray(logits), *rest)
        np.testing.assert_allclose(value, np.full(examples, wanted), rtol=1e-6)
        assert gradient.shape == logits.shape
        assert np.all(np.isfinite(gradient))


def test_targets_in_line_and_lengths_of_every_kind():
    log_probs = jax.nn.log_softmax(normal(9, 3, 5))
    rows = jnp.array([[1, 2, 2, 0], [3, 0, 0, 0], [4, 1, 0, 0]])
    in_line, lengths = jnp.array([1, 2, 2, 3, 4, 1]), (3, 1, 2)
    wanted = F.ctc_loss(log_probs, rows, (9, 8, 7), lengths, reduction="none")

    def loss(targets, target_lengths, frames=(9, 8, 7)):
        return F.ctc_loss(log_probs, targets, frames, target_lengths, reduction="none")

    for targets in (rows, in_line, in_line.astype(jnp.uint8)):
        for kind in (tuple, list, np.array, jnp.array):
            got = loss(targets, kind(lengths), kind((9, 8, 7)))
            np.testing.assert_allclose(got, wanted, rtol=1e-6)
        np.testing.assert_allclose(jax.jit(loss)(targets, jnp.array(lengths)), wanted, rtol=1e-6)
    for row, frames, length, value in zip(rows, (9, 8, 7), lengths, wanted, strict=True):
        i = [9, 8, 7].index(frames)
        alone = F.ctc_loss(log_probs[:, i], row, frames, length, reduction="none")
        assert alone.shape == ()
        np.testing.assert_allclose(alone, value, rtol=1e-6)
    missing = np.asarray(jax.jit(loss)(in_line, jnp.array([3, 1, 3])))
    np.testing.assert_allclose(missing[:2], wanted[:2], rtol=1e-6)
    assert np.isnan(missing[2])


def test_alignment_is_differentiable(x64):
    logits, *rest = batch()
    paddings = padded_from(rest[1], FRAMES), rest[0], padded_from(rest[2], LABELS)

    def entropy(x):
        return jnp.sum(jaxloss.ctc_alignment(x, *paddings) ** 2)

    @jax.jit
    def derivatives(x, d):
        ends = entropy(x + 1e-6 * d), entropy(x - 1e-6 * d)
        return jax.grad(entropy)(x), jax.jvp(entropy, (x,), (d,))[1], ends

    x = np.where(np.isneginf(logits), 0, np.float64(logits))
    d = np.where(np.isnan(x), 0, np.random.default_rng(0).normal(size=x.shape))
    gradient, along, (ahead, behind) = derivatives(x, d)
    assert np.all(np.isfinite(gradient))
    slope = (ahead - behind) / 2e-6
    np.testing.assert_allclose(np.sum(gradient * d), slope, rtol=1e-6)
    np.testing.assert_allclose(along, slope, rtol=1e-6)
    half = jax.eval_shape(jaxloss.ctc_alignment, jnp.asarray(x, jnp.bfloat16), *paddings)
    assert half.dtype == jnp.float32
