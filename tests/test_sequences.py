"""CTC as it is called: sequences left out, certain alignments, symbolic sizes, targets in line."""

import functools
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental import checkify

import jaxloss
from jaxloss import functional as F

ROOT = pathlib.Path(__file__).parent.parent
N, T, C, L = 5, 7, 4, 3
KEPT = np.array([True, False, True, True, False])
DOORS = [jaxloss.ctc_loss, jaxloss.ctc_alignment]


def spoken(dtype: type[np.floating] = np.float32):
    """Logits, paddings, labels and paddings of N sequences, with labels twice and none at all."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(N, T, C)).astype(dtype)
    frames, present = rng.integers(5, T + 1, (N, 1)), np.array([[3], [2], [0], [1], [3]])
    labels = rng.integers(1, C, (N, L)).astype(np.int32)
    labels[0] = [2, 2, 1]
    paddings = (np.arange(T) >= frames), (np.arange(L) >= present)
    return logits, paddings[0].astype(dtype), labels, paddings[1].astype(dtype)


@functools.partial(jax.jit, static_argnums=(0, 1))
def everything(f, in_reverse, where, x, *rest):
    """Value and forward derivative, gradient and second derivatives, in reverse mode if asked.

    Both modes agree, so that the reference needs only one. The direction is not that of ones, along
    which no loss changes.
    """

    def g(x):
        return f(x, *rest, where=where)

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(g(x) ** 2))(x)

    along = jnp.broadcast_to(np.cos(np.arange(T * C)).reshape(1, T, C), x.shape)
    found = *jax.jvp(g, (x,), (along,)), *jax.jvp(gradient, (x,), (along,))
    return (*found, jax.vjp(gradient, x)[1](along)[0]) if in_reverse else (*found, found[-1])


def poisoned(args, poison):
    """The arguments with every sequence that is not kept overwritten."""
    logits, logit_paddings, labels, label_paddings = (x.copy() for x in args)
    logits[~KEPT] = poison
    logit_paddings[~KEPT] = poison
    label_paddings[~KEPT] = poison
    labels[~KEPT] = 10**6
    return logits, logit_paddings, labels, label_paddings


@pytest.mark.parametrize("f", DOORS, ids=lambda f: f.__name__)
def test_an_excluded_sequence_is_absent(f, x64):
    args, all_of_them = spoken(np.float64), np.ones(N, bool)
    masked = functools.partial(everything, f, True)
    deleted = everything(f, False, None, *(x[KEPT] for x in args))
    for poison in (np.nan, np.inf, -np.inf, 0.0):
        found = masked(KEPT, *poisoned(args, poison))
        for mine, wanted in zip(map(np.asarray, found), deleted, strict=True):
            np.testing.assert_array_equal(mine[~KEPT], 0)
            np.testing.assert_allclose(mine[KEPT], wanted, rtol=1e-5, atol=1e-5)
            assert np.any(wanted)
    for mine, wanted in zip(masked(all_of_them, *args), deleted, strict=True):
        np.testing.assert_allclose(mine[KEPT], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("f", DOORS, ids=lambda f: f.__name__)
def test_where_has_the_shape_of_the_batch(f):
    args = poisoned(spoken(), np.nan)
    whole = f(*args, where=KEPT)
    mapped = jax.vmap(lambda where, *args: f(*args, where=where))(KEPT, *args)
    np.testing.assert_allclose(mapped, whole, rtol=1e-6)
    pairs = [np.stack([x, x]) for x in args]  # A second dimension of the batch.
    for where in (KEPT[None], np.stack([KEPT, KEPT])):
        many = f(*pairs, where=where)
        np.testing.assert_allclose(many, np.stack([whole, whole]), rtol=1e-6)
    assert not np.any(f(*pairs, where=np.zeros((1, 1), bool)))
    for wrong in (KEPT, KEPT[:, None], np.ones((2, T), bool)):
        with pytest.raises(ValueError, match=rf"{f.__name__}: `where` must have the rank of"):
            f(*pairs, where=wrong)
    with pytest.raises(TypeError, match=rf"{f.__name__}: `where` must be a boolean array"):
        f(*args, where=KEPT.astype(np.float32))


@pytest.mark.parametrize("f", DOORS, ids=lambda f: f.__name__)
def test_checkify_does_not_ask_an_excluded_sequence(f):
    logits, logit_paddings, labels, label_paddings = spoken()
    for bad in (0, C, -1):
        wrong = np.where(KEPT[:, None], labels, bad)
        check = checkify.checkify(f)
        options = logits, logit_paddings, wrong, np.zeros_like(label_paddings)
        assert check(*options, where=KEPT)[0].get() is None
        assert "`labels` must" in str(check(*options)[0].get())


def test_a_mask_by_multiplication_is_nan_where_where_is_0():
    """What the documentation warns of: an impossible sequence has the loss inf, and inf · 0."""
    logits, labels = jnp.zeros((2, 2, 3)), jnp.array([[1, 2], [1, 1]])
    args = logits, jnp.zeros((2, 2)), labels, jnp.zeros((2, 2))
    kept = jnp.array([True, False])
    losses = jaxloss.ctc_loss(*args)
    assert np.isnan(jnp.sum(losses * kept.astype(losses.dtype)))
    for right in (
        jaxloss.ctc_loss(*args, where=kept).sum(),
        jaxloss.reduce(losses, where=kept),
        jaxloss.reduce(losses, weights=kept),
    ):
        np.testing.assert_allclose(right, losses[0], rtol=1e-6)


def test_the_likeliest_symbols_of_an_alignment_are_no_path():
    """A label twice has a blank between, but nowhere is it the likeliest."""
    args = (
        jnp.log(jnp.full((6, 2), 0.5)).at[:, 1].add(2),
        jnp.zeros(6),
        jnp.ones(2, int),
        jnp.zeros(2),
    )
    alignment = jaxloss.ctc_alignment(*args)
    with_blank = jnp.concatenate([1 - alignment.sum(-1, keepdims=True), alignment], -1)
    likeliest = np.argmax(with_blank, -1)
    assert 0 not in likeliest


def switches(count, strength, seed=0):
    """Log probabilities of `count` labels, each sure in a frame and repeated in the next or not.

    All paths that have a probability read the labels, so that the loss is 0.
    """
    logits = np.full((2 * count, 1, count + 1), -1e3, np.float32)
    noise = np.random.default_rng(seed).normal(size=(count, 2)) * strength
    for k in range(count):
        logits[2 * k, 0, k + 1] = 0
        logits[2 * k + 1, 0, [0, k + 1]] = noise[k]
    return jnp.asarray(logits), np.arange(1, count + 1, dtype=np.int32)[None]


def behind_softmax(logits, labels):
    lengths = (len(logits),), (labels.shape[1],)
    return F.ctc_loss(jax.nn.log_softmax(logits), labels, *lengths, reduction="none")


@pytest.mark.parametrize("count", [1, 10, 100])
def test_never_below_0_by_rounding(count):
    lengths = (2 * count,), (count,)

    @jax.jit
    def run(x, labels):
        f = functools.partial(F.ctc_loss, reduction="sum")
        value, gradient = jax.value_and_grad(f)(x, labels, *lengths)
        _, slope = jax.jvp(lambda x: f(x, labels, *lengths), (x,), (0 * x + 1,))
        return value, gradient, slope

    for strength in (0.01, 0.5, 1, 3):
        for seed in range(5):
            logits, labels = switches(count, strength, seed)
            log_probs = jax.nn.log_softmax(logits)
            loss, gradient, slope = run(log_probs, labels)
            assert 0 <= loss < 1e-5
            # The derivative is that of the loss itself.
            np.testing.assert_allclose(gradient, -np.exp(np.asarray(log_probs)), atol=1e-6)
            np.testing.assert_allclose(slope, -2.0 * count, rtol=1e-6)


def test_second_derivatives_where_the_value_was_below_0():
    logits, labels = switches(2, 0.7)

    def f(x):
        return behind_softmax(x, labels)[0]

    low = np.asarray(jax.jit(jax.hessian(f))(logits))
    with jax.enable_x64(True):
        wanted = jax.jit(jax.hessian(f))(jnp.asarray(logits, jnp.float64))
    np.testing.assert_allclose(low, wanted, atol=1e-6)


@pytest.mark.parametrize("excess", [1e-4, 0.1])
def test_factors_above_1_may_make_it_negative(excess):
    factors = jnp.full((6, 1, 2), excess)
    loss = F.ctc_loss(factors, jnp.ones((1, 0), jnp.int32), (6,), (0,), reduction="sum")
    np.testing.assert_allclose(loss, -6 * excess, rtol=1e-4)


def test_lengths_may_be_narrower_than_the_integers_of_jax(x64):
    log_probs = jax.nn.log_softmax(jnp.arange(30.0, dtype=jnp.float32).reshape(5, 2, 3))
    targets, lengths = jnp.ones((2, 2), jnp.int32), ((5, 4), (2, 1))
    wanted = F.ctc_loss(log_probs, targets, *lengths, reduction="none")
    for dtype in (jnp.int32, jnp.int8):
        frames, present = (jnp.array(each, dtype) for each in lengths)
        got = F.ctc_loss(log_probs, targets, frames, present, reduction="none")
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


def rows(*batch):
    """Arguments of the core functions, of which nothing is padding."""
    logits = np.random.default_rng(0).normal(size=(*batch, T, C)).astype(np.float32)
    paddings = np.zeros((*batch, T), bool), np.zeros((*batch, L), bool)
    return logits, paddings[0], np.full((*batch, L), 2, np.int32), paddings[1]


def in_time(examples, *shape):
    """Arguments of torch's function, with targets of some shape, of which each has one."""
    logits = np.random.default_rng(0).normal(size=(T, examples, C)).astype(np.float32)
    counts = np.full(examples, T), np.ones(examples, int)
    return logits, np.full(shape, 2, np.int32), *(x.astype(np.int32) for x in counts)


SYMBOLIC = {  # A function, its arguments, and their shapes with symbols in them.
    "targets in line": (F.ctc_loss, in_time(3, 3), "7,n,4 m n n"),
    "targets in rows": (F.ctc_loss, in_time(3, 3, 2), "7,n,4 n,m n n"),
    "leading dimensions": (jaxloss.ctc_loss, rows(2, 3), "n,m,7,4 n,m,7 n,m,3 n,m,3"),
    # A mask is given to this one alone, since what it does to a loss is the same.
    "alignment": (
        lambda *args: jaxloss.ctc_alignment(*args[:-1], where=args[-1]),
        (*rows(2, 3), np.array([[True, False, True], [True, True, False]])),
        "n,m,7,4 n,m,7 n,m,3 n,m,3 n,m",
    ),
}


@pytest.mark.parametrize("name", SYMBOLIC)
def test_symbolic_sizes(name):
    f, args, shapes = SYMBOLIC[name]
    args = jax.tree.map(jnp.asarray, args)  # Without 64-bit integers, which not all JAX exports.
    specs = export.symbolic_args_specs(args, shapes.split())
    g = jax.jit(jax.value_and_grad(lambda *args: jnp.sum(f(*args) ** 2)))
    for mine, wanted in zip(export.export(g)(*specs).call(*args), g(*args), strict=True):
        assert np.all(np.isfinite(wanted))
        assert np.any(wanted)
        np.testing.assert_allclose(mine, wanted, rtol=1e-5, atol=1e-6)


def compilations(caplog, f, calls):
    """How many programs are compiled for all the calls, and what they return."""
    caplog.clear()
    with jax.log_compiles(), caplog.at_level("WARNING", logger="jax"):
        results = [f(*args) for args in calls]
    return sum(r.getMessage().startswith("Compiling ") for r in caplog.records), results


def test_targets_in_line_compile_for_few_sizes(caplog):
    """Totals and longest lengths of every kind, as batches have them."""
    rng = np.random.default_rng(0)
    log_probs = jax.nn.log_softmax(jnp.asarray(rng.normal(size=(30, 3, 6)), jnp.float32))
    frames = (30, 29, 28)
    calls, rows = [], []
    for longest in (1, *range(2, 13), 0):
        lengths = np.array([longest, longest // 2, max(longest - 1, 0)])
        row = rng.integers(1, 6, (3, 12)).astype(np.int32)
        rows.append((log_probs, row, frames, lengths))
        line = np.concatenate([x[:n] for x, n in zip(row, lengths, strict=True)])
        # Arrays of both libraries and lists, each in its turn.
        kind = (np.asarray, jnp.asarray, lambda x: x.tolist())[longest % 3 if line.size else 0]
        calls.append((log_probs, kind(line), frames, kind(lengths)))

    def f(*args):
        return jax.value_and_grad(F.ctc_loss)(*args)

    wanted = [f(*args) for args in rows]
    count, first = compilations(caplog, f, calls[:1])
    assert count
    more, others = compilations(caplog, f, calls[1:])
    assert more <= 2 * count  # Rows of 8 and of 12, the former compiled already.
    for mine, (value, gradient) in zip(first + others, wanted, strict=True):
        np.testing.assert_allclose(mine[0], value, rtol=1e-6)
        np.testing.assert_allclose(mine[1], gradient, rtol=1e-5, atol=1e-7)
    # Under another jit they are not known, as the documentation says.
    traced = [[jnp.asarray(x) for x in args] for args in calls[1:5]]
    inside, _ = compilations(caplog, jax.jit(F.ctc_loss), traced)
    assert inside >= 4


def test_lengths_in_line_that_do_not_fit():
    log_probs = jax.nn.log_softmax(jnp.zeros((9, 3, 5)))
    losses = F.ctc_loss(log_probs, np.ones(3, int), (9, 9, 9), (-1, 3, 1), reduction="none")
    assert np.isnan(losses[0])
    for wrong in ((1, 1, 0), (2, 2, 2)):
        with pytest.raises(ValueError, match=r"ctc_loss: `targets` must hold the . targets"):
            F.ctc_loss(log_probs, np.ones(3, int), (9, 9, 9), wrong)


AFTER_FEWER_CLASSES = """
import jax, jax.numpy as jnp, numpy as np
import jaxloss

def losses(x, classes):
    ends, missing = jnp.zeros((8, 64)), jnp.zeros((8, 16))
    labels = jnp.broadcast_to(1 + jnp.arange(16) % (classes - 1), (8, 16))
    rows, rest = jnp.broadcast_to(x[:, :, None], (8, 64, 17, classes)), (ends, labels, missing)
    return jaxloss.ctc_loss(x, *rest), jaxloss.rnnt_loss(rows, *rest)

for classes in (5, 7):
    x = np.random.default_rng(0).normal(size=(8, 64, classes)).astype(np.float32)
    found = jax.jit(losses, static_argnums=1)(x, classes)
with jax.enable_x64(True):
    exact = jax.jit(losses, static_argnums=1)(x.astype(np.float64), classes)
for one, other in zip(found, exact):
    np.testing.assert_allclose(one, other, rtol=1e-6)
"""


def test_fewer_classes_before_change_nothing():
    """In a process of its own, where it is known which were the first."""
    subprocess.run([sys.executable, "-c", AFTER_FEWER_CLASSES], check=True, cwd=ROOT)
