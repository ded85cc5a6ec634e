"""The transducer called wrongly: errors that say so, at the call and under checkify."""

# pyright: reportArgumentType=false
# What type checkers do not take is the subject.

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import checkify

import jaxloss
from jaxloss import functional as F

X, ONES = jnp.zeros((2, 3, 3, 4)), jnp.ones((2, 2), jnp.int32)
NONE, SOME = jnp.zeros((2, 3)), jnp.zeros((2, 2))
WRONG = [
    (
        lambda: jaxloss.rnnt_loss(X[0, 0], NONE, ONES, SOME),
        ValueError,
        r"`logits` must have shape \(\.\.\., T, U \+ 1, C\), got \(3, 4\)",
    ),
    (
        lambda: jaxloss.rnnt_loss(X, SOME, ONES, SOME),
        ValueError,
        r"`logit_paddings` must have shape \(2, 3\), got \(2, 2\)",
    ),
    (
        lambda: jaxloss.rnnt_loss(X, NONE, ONES, SOME[0]),
        ValueError,
        r"`label_paddings` must have shape \(2, L\), got \(2,\)",
    ),
    (
        lambda: jaxloss.rnnt_loss(X, NONE, ONES[:, :1], SOME[:, :1]),
        ValueError,
        r"`labels` must have shape \(2, 2\), one fewer than rows, got \(2, 1\)",
    ),
    (
        lambda: jaxloss.rnnt_loss(X, NONE, SOME, SOME),
        TypeError,
        "`labels` must be an array of integers, got float32",
    ),
    (
        lambda: jaxloss.rnnt_loss(X, NONE, ONES, SOME, blank_id=-1),
        ValueError,
        r"`blank_id` must be a symbol in \[0, 4\), got -1",
    ),
    (
        lambda: jaxloss.rnnt_loss(X, NONE, ONES, SOME, fastemit=-0.5),
        ValueError,
        r"`fastemit` must be 0 or more, got -0\.5",
    ),
    (
        lambda: jaxloss.rnnt_loss(X, NONE, ONES, SOME, where=jnp.ones((2, 1), bool)),
        ValueError,
        r"`where` must have the rank of `logits\[\.\.\., 0, 0, 0\]`",
    ),
    (
        lambda: F.rnnt_loss(X[0], ONES, [3, 3], [2, 2]),
        ValueError,
        r"`logits` must have shape \(N, T, U \+ 1, C\), got \(3, 3, 4\)",
    ),
    (
        lambda: F.rnnt_loss(X, ONES[:1], [3, 3], [2, 2]),
        ValueError,
        r"`targets` must have shape \(2, 2\), got \(1, 2\)",
    ),
    (
        lambda: F.rnnt_loss(X, ONES, [3], [2, 2]),
        ValueError,
        r"`logit_lengths` must have shape \(2,\), got \(1,\)",
    ),
    (
        lambda: F.rnnt_loss(X, ONES, [3, 3], [2.0, 2.0]),
        TypeError,
        "`target_lengths` must be an array of integers, got float32",
    ),
    (
        lambda: F.rnnt_loss(X, ONES, [3, 3], [2, 2], -5),
        ValueError,
        r"`blank` must be a symbol in \[-4, 4\), got -5",
    ),
    (
        lambda: F.rnnt_loss(X, ONES, [3, 3], [2, 2], reduction="avg"),
        ValueError,
        "`reduction` must be 'none', 'mean' or 'sum', got 'avg'",
    ),
]


@pytest.mark.parametrize(("call", "error", "words"), WRONG, ids=[w for *_, w in WRONG])
def test_wrong_calls(call, error, words):
    with pytest.raises(error, match=f"^rnnt_loss: {words}"):
        call()


FAULTS = [
    (lambda y: jaxloss.rnnt_loss(X, NONE, y, SOME), 4 * ONES, "`labels` must be symbols in [0, 4)"),
    (
        lambda y: jaxloss.rnnt_loss(X, NONE, y, SOME),
        0 * ONES,
        "`labels` must not contain the blank, 0",
    ),
    (
        lambda y: F.rnnt_loss(X, y, [3, 3], [2, 2]),
        3 * ONES,
        "`targets` must not contain the blank, 3",
    ),
    (
        lambda n: F.rnnt_loss(X, ONES, n, [2, 2]),
        jnp.array([3, 4]),
        "`logit_lengths` must be in [0, 3]",
    ),
    (
        lambda n: F.rnnt_loss(X, ONES, [3, 3], n),
        jnp.array([3, 2]),
        "`target_lengths` must be in [0, 2]",
    ),
    (
        lambda e: jaxloss.rnnt_loss(X, NONE, ONES, SOME, fastemit=e),
        -1.0,
        "`fastemit` must be 0 or more",
    ),
]


@pytest.mark.parametrize(("call", "value", "words"), FAULTS, ids=[w for *_, w in FAULTS])
def test_faults_under_checkify(call, value, words):
    assert f"rnnt_loss: {words}" in str(jax.jit(checkify.checkify(call))(value)[0].get())
