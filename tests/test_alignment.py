"""Best paths by brute force, spans, greedy decoding and edit distances."""

# pyright: reportArgumentType=false
# What type checkers do not take is a part of the subject.

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental import checkify
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxloss
from jaxloss import functional as F

T, L, C = 5, 3, 3


def reads(path, blank_id):
    return [symbol for symbol, _ in itertools.groupby(path) if symbol != blank_id]


def by_brute_force(log_probs, labels, blank_id):
    """The best score, and all paths that have it."""
    scores = {
        path: sum(log_probs[range(len(path)), path])
        for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs))
        if reads(path, blank_id) == labels
    }
    best = max(scores.values(), default=-np.inf)
    return best, [path for path, score in scores.items() if score > best - 1e-6 > -np.inf]


def spoken():
    """Sequences with labels twice, with none, with too few frames, without a frame, and ties."""
    labels = np.array(
        [[1, 2, 1], [1, 1, 2], [2, 99, -5], [1, 1, 1], [7, 7, 7], [1, 2, 2], [2, 2, 7]]
    )
    present, frames = np.array([3, 3, 1, 3, 0, 2, 2]), np.array([5, 4, 4, 4, 3, 0, 5])
    logits = np.random.default_rng(0).normal(size=(len(labels), T, C)).astype(np.float32)
    logits[-1] = 0
    paddings = np.arange(T) >= frames[:, None], np.arange(L) >= present[:, None]
    return np.where(paddings[0][..., None], np.nan, logits), paddings[0], labels, paddings[1]


@pytest.mark.parametrize("blank_id", [0, 2])
def test_best_path(blank_id):
    logits, paddings, labels, missing = spoken()
    labels = np.where((labels > 0) & (labels < C), labels - (blank_id == 2), labels)
    path = jaxloss.ctc_forced_alignment(logits, paddings, labels, missing, blank_id=blank_id)
    for i, (x, own) in enumerate(zip(logits, labels, strict=True)):
        log_probs = np.asarray(jax.nn.log_softmax(jnp.asarray(x[~paddings[i]])))
        best, paths = by_brute_force(log_probs, own[~missing[i]].tolist(), blank_id)
        symbols = np.asarray(path.symbols[i])
        assert np.all(symbols[paddings[i]] == -1)
        assert not np.any(path.log_probs[i][paddings[i]])
        np.testing.assert_allclose(path.score[i], best, rtol=1e-6)
        found = symbols[~paddings[i]]
        if best == -np.inf:
            assert np.all(symbols == -1)
            assert not np.any(path.log_probs[i])
        else:
            assert tuple(found) in paths
            np.testing.assert_allclose(
                path.log_probs[i][~paddings[i]], log_probs[range(len(found)), found], rtol=1e-6
            )
    assert np.isneginf(path.score).tolist() == [0, blank_id == 9, 0, 1, 0, 1, 0]


def test_ties_go_to_the_lower_state():
    """With all equally likely, labels are read as late as they can be."""
    path = jaxloss.ctc_forced_alignment(
        jnp.zeros((6, 3)), jnp.zeros(6), jnp.array([1, 1, 2]), jnp.zeros(3)
    )
    assert path.symbols.tolist() == [0, 0, 1, 0, 1, 2]
    np.testing.assert_allclose(path.score, -6 * np.log(3), rtol=1e-6)


def test_a_long_path_is_the_best():
    """In float32, against float64: sums of thousands of terms would lose what tells paths apart."""
    frames, size = 3000, 300
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(frames, 8)).astype(np.float32) * 20
    labels = rng.integers(1, 8, size)
    path = jax.jit(
        lambda x: jaxloss.ctc_forced_alignment(x, jnp.zeros(frames), labels, jnp.zeros(size))
    )(logits)
    wide = logits.astype(np.float64)
    log_probs = wide - wide.max(-1, keepdims=True)
    log_probs -= np.log(np.exp(log_probs).sum(-1, keepdims=True))
    states = np.zeros(2 * size + 1, int)
    states[1::2] = labels
    may_skip = np.append([False, False], states[2:] != states[:-2])
    best = np.where(np.arange(len(states)) == 0, 0, -np.inf)
    for row in log_probs[:, states]:
        by_one = np.append(-np.inf, best[:-1])
        by_two = np.where(may_skip, np.append([-np.inf] * 2, best[:-2]), -np.inf)
        best = np.maximum(np.maximum(best, by_one), by_two) + row
    assert reads(path.symbols.tolist(), 0) == labels.tolist()
    np.testing.assert_allclose(
        log_probs[range(frames), path.symbols].sum(), best[-2:].max(), rtol=1e-12
    )
    np.testing.assert_allclose(path.score, best[-2:].max(), rtol=1e-7)


def test_scores_differentiate_along_the_path():
    logits, *rest = spoken()

    def scores(x):
        return jaxloss.ctc_forced_alignment(x, *rest).score

    path = jaxloss.ctc_forced_alignment(logits, *rest)
    slope, forward = jax.jacrev(scores)(logits), jax.jacfwd(scores)(logits)
    np.testing.assert_allclose(slope, forward, atol=1e-6)
    hot = np.arange(C) == np.asarray(path.symbols)[..., None]
    wanted = hot - np.asarray(jax.nn.softmax(np.nan_to_num(logits)))
    wanted[np.asarray(path.symbols) < 0] = 0
    for i in range(len(logits)):
        np.testing.assert_allclose(slope[i, i], wanted[i], atol=1e-6)


def test_bad_labels_and_leading_dimensions():
    logits, paddings, labels, missing = (x[:4] for x in spoken())
    whole = jaxloss.ctc_forced_alignment(logits, paddings, labels, missing)
    pairs = [x.reshape(2, 2, *x.shape[1:]) for x in (logits, paddings, labels, missing)]
    shaped = jaxloss.ctc_forced_alignment(*pairs)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x.reshape(y.shape), y), shaped, whole)
    mapped = jax.vmap(jaxloss.ctc_forced_alignment)(logits, paddings, labels, missing)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), mapped, whole)
    wrong = np.where(np.arange(4)[:, None] == 1, C, labels)
    path = jaxloss.ctc_forced_alignment(logits, paddings, wrong, missing)
    assert np.isnan(path.score).tolist() == [0, 1, 0, 0]
    assert np.all(path.symbols[1] == -1)
    assert not np.any(path.log_probs[1])
    np.testing.assert_array_equal(path.symbols[0], whole.symbols[0])
    half = jaxloss.ctc_forced_alignment(
        jnp.asarray(logits, jnp.bfloat16), paddings, labels, missing
    )
    assert half.score.dtype == jnp.float32


@pytest.mark.parametrize("shape", [(0, 2, 1), (2, 0, 1), (2, 0, 0), (2, 2, 0)], ids=str)
def test_empty_dimensions(shape):
    examples, frames, size = shape
    path = jaxloss.ctc_forced_alignment(
        jnp.zeros((examples, frames, 3)),
        jnp.zeros((examples, frames)),
        jnp.ones((examples, size), int),
        jnp.zeros((examples, size)),
    )
    wanted = -np.inf if size > frames else -frames * np.log(3)
    np.testing.assert_allclose(path.score, np.full(examples, wanted), rtol=1e-6)
    assert path.symbols.shape == (examples, frames)
    spans = jaxloss.ctc_spans(path.symbols, path.log_probs)
    assert spans.labels.shape == (examples, frames)


def test_forced_align_is_torchaudios():
    logits, paddings, labels, missing = spoken()
    logits = np.nan_to_num(logits)
    frames, present = np.sum(~paddings, 1), np.sum(~missing, 1)
    log_probs = jax.nn.log_softmax(logits)
    symbols, scores = F.forced_align(log_probs, np.clip(labels, 1, 2), frames, present)
    wanted = jaxloss.ctc_forced_alignment(logits, paddings, np.clip(labels, 1, 2), missing)
    np.testing.assert_array_equal(symbols, wanted.symbols)
    impossible = np.isneginf(wanted.score)[:, None] & ~paddings
    np.testing.assert_allclose(scores, np.where(impossible, -np.inf, wanted.log_probs), rtol=1e-5)
    whole, _ = F.forced_align(2 + log_probs, np.clip(labels, 1, 2))
    assert whole.shape == (len(logits), T)
    np.testing.assert_allclose(
        F.forced_align(2 + log_probs, labels[:, :0], None, [0] * 7)[1],
        2 + log_probs[..., 0],
        rtol=1e-5,
    )
    for targets, lengths, value in (
        ([[1, 0]], [T], -np.inf),
        ([[1, 2]], [T + 1], -np.inf),
        ([[1, 1]], [2], -np.inf),
        ([[1, C]], [T], np.nan),
    ):
        symbols, scores = F.forced_align(log_probs[:1], np.array(targets), np.array(lengths))
        own = min(lengths[0], T)
        assert np.all(symbols[0, :own] == -1)
        np.testing.assert_array_equal(scores[0, :own], np.full(own, value))
        check = checkify.checkify(lambda y, n: F.forced_align(log_probs[:1], y, n))
        assert "forced_align: `" in str(check(np.array(targets), np.array(lengths))[0].get())


def test_spans():
    """Of a path with padding inside of a label, and of several at once."""
    symbols = np.array([[0, 2, -1, 2, 0, 2, 1, 1], [-1] * 8, [1, 1, 0, 0, 3, 0, -1, -1]])
    probs = np.linspace(0.1, 0.8, 24).reshape(3, 8).astype(np.float32)
    log_probs = np.where(symbols < 0, np.nan, np.log(probs))
    spans = jaxloss.ctc_spans(symbols, log_probs)
    assert spans.labels.tolist() == [[2, 2, 1] + [-1] * 5, [-1] * 8, [1, 3] + [-1] * 6]
    assert spans.first.tolist() == [[1, 5, 6] + [0] * 5, [0] * 8, [0, 4] + [0] * 6]
    assert spans.last.tolist() == [[3, 5, 7] + [-1] * 5, [-1] * 8, [1, 4] + [-1] * 6]
    wanted = np.zeros((3, 8))
    wanted[0, :3] = probs[0, [1, 3]].mean(), probs[0, 5], probs[0, 6:].mean()
    wanted[2, :2] = probs[2, :2].mean(), probs[2, 4]
    np.testing.assert_allclose(spans.probs, wanted, rtol=1e-6)
    mapped = jax.vmap(jaxloss.ctc_spans)(symbols, log_probs)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), mapped, spans)
    assert jaxloss.ctc_spans(symbols[0], log_probs[0], blank_id=2).labels[:4].tolist() == [
        0,
        0,
        1,
        -1,
    ]
    slope = jax.grad(lambda x: jaxloss.ctc_spans(symbols, x).probs.sum())(jnp.asarray(log_probs))
    assert np.all(np.isfinite(slope))
    np.testing.assert_allclose(slope[2, 4], probs[2, 4], rtol=1e-6)


def test_greedy_decode():
    rng = np.random.default_rng(0)
    logits, paddings = rng.normal(size=(4, 9, 3)).astype(np.float32), rng.random((4, 9)) < 0.3
    logits[paddings] = np.nan
    logits[1, 3] = 0  # A tie is the lowest symbol.
    for blank_id in (0, 1):
        labels, missing = jaxloss.ctc_greedy_decode(logits, paddings, blank_id=blank_id)
        for i, x in enumerate(logits):
            wanted = reads(x[~paddings[i]].argmax(-1), blank_id)
            assert labels[i].tolist() == wanted + [0] * (9 - len(wanted))
            assert missing[i].tolist() == [False] * len(wanted) + [True] * (9 - len(wanted))
    mapped = jax.vmap(jaxloss.ctc_greedy_decode)(logits, paddings)
    wanted = jaxloss.ctc_greedy_decode(logits, paddings)
    jax.tree.map(np.testing.assert_array_equal, mapped, wanted)
    none = jaxloss.ctc_greedy_decode(jnp.zeros((2, 0, 3)), jnp.zeros((2, 0)))
    assert [x.shape for x in none] == [(2, 0), (2, 0)]


def levenshtein(a, b):
    row = [*range(len(b) + 1)]
    for x in a:
        after = [row[0] + 1]
        for j, y in enumerate(b):
            after.append(min(after[j] + 1, row[j + 1] + 1, row[j] + (x != y)))
        row = after
    return row[-1]


def test_edit_distance():
    rng = np.random.default_rng(0)
    one, other = rng.integers(-1, 3, (20, 5)), rng.integers(-1, 3, (20, 7))
    missing = rng.random((20, 5)) < 0.3, rng.random((20, 7)) < 0.3
    wanted = [
        levenshtein(a[~p], b[~q])
        for a, p, b, q in zip(one, missing[0], other, missing[1], strict=True)
    ]
    found = jaxloss.edit_distance(one, missing[0], other, missing[1])
    assert found.tolist() == wanted
    assert jnp.issubdtype(found.dtype, jnp.integer)
    assert jax.vmap(jaxloss.edit_distance)(one, missing[0], other, missing[1]).tolist() == wanted
    pairs = [x.reshape(4, 5, x.shape[1]) for x in (one, missing[0], other, missing[1])]
    assert jaxloss.edit_distance(*pairs).ravel().tolist() == wanted
    for width in (0, 2):
        none = jaxloss.edit_distance(
            jnp.ones((3, 0), int),
            jnp.ones((3, 0)),
            jnp.ones((3, width), int),
            jnp.zeros((3, width)),
        )
        assert none.tolist() == [width] * 3


CALLS = {  # A function, its arguments, and their shapes with symbols in them.
    "path": (jaxloss.ctc_forced_alignment, "n,5,3 n,5 n,3 n,3"),
    "spans": (jaxloss.ctc_spans, "n,5 n,5"),
    "greedy": (jaxloss.ctc_greedy_decode, "n,5,3 n,5"),
    "distance": (jaxloss.edit_distance, "n,5 n,5 n,3 n,3"),
    "torchaudio": (F.forced_align, "n,5,3 n,3 n n"),
}


@pytest.mark.parametrize("name", CALLS)
def test_any_number_on_every_platform_and_spread_over_devices(name):
    logits, paddings, labels, missing = spoken()
    logits, labels = np.nan_to_num(logits), np.clip(labels, 1, 2)
    twice = [np.concatenate([x, x[:1]]) for x in (logits, paddings, labels, missing)]  # 8 of them.
    logits, paddings, labels, missing = twice
    symbols = labels[:, [0, 0, 1, 2, 2]]
    args = {
        "path": (logits, paddings, labels, missing),
        "spans": (symbols, logits[..., 0]),
        "greedy": (logits, paddings),
        "distance": (symbols, paddings, labels, missing),
        "torchaudio": (logits, labels, np.sum(~paddings, 1), np.sum(~missing, 1)),
    }[name]
    args = jax.tree.map(jnp.asarray, args)  # Without 64-bit integers, which not all JAX exports.
    f, shapes = CALLS[name]
    wanted = f(*args)
    exported = export.export(jax.jit(f), platforms=["cpu", "cuda", "tpu", "rocm"])(
        *export.symbolic_args_specs(args, shapes.split())
    )
    devices = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.shard_map(f, mesh=devices, in_specs=P("data"), out_specs=P("data"))
    for found in (exported.call(*args), jax.jit(spread)(*args)):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, wanted)


X, FRAMES, ONES, NONE = (
    jnp.zeros((2, 4, 3)),
    jnp.zeros((2, 4)),
    jnp.ones((2, 2), jnp.int32),
    jnp.zeros((2, 2)),
)
WRONG = [
    (
        lambda: jaxloss.ctc_forced_alignment(X[0, 0], FRAMES, ONES, NONE),
        ValueError,
        r"ctc_forced_alignment: `logits` must have shape \(\.\.\., T, C\), got \(3,\)",
    ),
    (
        lambda: jaxloss.ctc_forced_alignment(X, NONE, ONES, NONE),
        ValueError,
        r"ctc_forced_alignment: `logit_paddings` must have shape \(2, 4\), got \(2, 2\)",
    ),
    (
        lambda: jaxloss.ctc_forced_alignment(X, FRAMES, NONE, NONE),
        TypeError,
        "ctc_forced_alignment: `labels` must be an array of integers",
    ),
    (
        lambda: jaxloss.ctc_greedy_decode(X[0, 0], FRAMES),
        ValueError,
        r"ctc_greedy_decode: `logits` must have shape \(\.\.\., T, C\), got \(3,\)",
    ),
    (
        lambda: jaxloss.ctc_greedy_decode(X, NONE),
        ValueError,
        r"ctc_greedy_decode: `logit_paddings` must have shape \(2, 4\), got \(2, 2\)",
    ),
    (
        lambda: jaxloss.ctc_greedy_decode(X, FRAMES, blank_id=3),
        ValueError,
        r"ctc_greedy_decode: `blank_id` must be a symbol in \[0, 3\), got 3",
    ),
    (
        lambda: jaxloss.ctc_spans(ONES, FRAMES),
        ValueError,
        r"ctc_spans: `symbols` must have shape \(2, 4\), got \(2, 2\)",
    ),
    (
        lambda: jaxloss.ctc_spans(1, 0.5),
        ValueError,
        r"ctc_spans: `symbols` must have shape \(\.\.\., T\), got \(\)",
    ),
    (
        lambda: jaxloss.edit_distance(ONES, FRAMES, ONES, NONE),
        ValueError,
        r"edit_distance: `labels1` must have shape \(2, 4\), got \(2, 2\)",
    ),
    (
        lambda: jaxloss.edit_distance(ONES, NONE, ONES[:1], NONE[:1]),
        ValueError,
        r"edit_distance: `label_paddings2` must have shape \(2, L2\), got \(1, 2\)",
    ),
    (
        lambda: jaxloss.edit_distance(ONES, NONE, NONE, NONE),
        TypeError,
        "edit_distance: `labels2` must be an array of integers, got float32",
    ),
    (
        lambda: F.forced_align(X[0], ONES),
        ValueError,
        r"forced_align: `log_probs` must have shape \(N, T, C\), got \(4, 3\)",
    ),
    (
        lambda: F.forced_align(X, ONES[0]),
        ValueError,
        r"forced_align: `targets` must have shape \(2, L\), got \(2,\)",
    ),
    (
        lambda: F.forced_align(X, ONES, [4]),
        ValueError,
        r"forced_align: `input_lengths` must have shape \(2,\), got \(1,\)",
    ),
    (
        lambda: F.forced_align(X, ONES, None, [1.0, 2.0]),
        TypeError,
        "forced_align: `target_lengths` must be an array of integers, got float32",
    ),
    (
        lambda: F.forced_align(X, ONES, blank=-1),
        ValueError,
        r"forced_align: `blank` must be a symbol in \[0, 3\), got -1",
    ),
]


@pytest.mark.parametrize(("call", "error", "words"), WRONG, ids=[w for *_, w in WRONG])
def test_wrong_calls(call, error, words):
    with pytest.raises(error, match=f"^{words}"):
        call()
