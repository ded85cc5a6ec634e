"""Conditions on values: an error under checkify, whatever the transform, and free without it."""

# pyright: reportArgumentType=false, reportCallIssue=false
# Wrong calls are among the subjects.

import re

import hlo
import jax
import jax.numpy as jnp
import pytest
from jax.experimental import checkify
from test_errors import FRAMES, IN_TIME, LENGTHS, LOGITS, PADDINGS, SPOKEN, X, Y

import jaxloss
from jaxloss import functional as F
from jaxloss._base import xla

# A call with a fault in its values, and what checkify says of it.
LABELS = jnp.array([0, 3])
FAULTS = [
    (
        lambda y: F.cross_entropy(X, y),
        LABELS,
        "cross_entropy: `target` must be a class in [0, 3) that takes part",
    ),
    (
        lambda y: F.nll_loss(X, y),
        LABELS,
        "nll_loss: `target` must be a class in [0, 3) that takes part",
    ),
    (
        lambda y: F.multi_margin_loss(X, y),
        -LABELS,
        "multi_margin_loss: `target` must be a class in [0, 3) that takes part",
    ),
    (
        lambda y: jaxloss.softmax_cross_entropy_with_integer_labels(X, y),
        LABELS,
        "softmax_cross_entropy_with_integer_labels: `labels` must be a class in [0, 3)",
    ),
    (
        lambda y: jaxloss.negative_log_likelihood(X, y),
        LABELS,
        "negative_log_likelihood: `labels` must be a class in [0, 3)",
    ),
    (
        lambda y: F.multilabel_margin_loss(X, y),
        jnp.full((2, 3), 3),
        "multilabel_margin_loss: `target` must be below 3, the number of classes",
    ),
    (
        lambda t: F.cross_entropy(X, t),
        2 * X,
        "cross_entropy: `target` must be probabilities in [0, 1]",
    ),
    (
        lambda t: jaxloss.softmax_cross_entropy(X, t),
        -X,
        "softmax_cross_entropy: `labels` must be probabilities in [0, 1]",
    ),
    (
        lambda p: F.binary_cross_entropy(p, X),
        2 * X,
        "binary_cross_entropy: `input` must be probabilities in [0, 1]",
    ),
    (
        lambda t: F.binary_cross_entropy(X, t),
        -X,
        "binary_cross_entropy: `target` must be probabilities in [0, 1]",
    ),
    (
        lambda t: F.binary_cross_entropy_with_logits(X, t),
        2 * X,
        "binary_cross_entropy_with_logits: `target` must be probabilities in [0, 1]",
    ),
    (
        lambda t: F.multilabel_soft_margin_loss(X, t),
        2 * X,
        "multilabel_soft_margin_loss: `target` must be probabilities in [0, 1]",
    ),
    (lambda t: F.kl_div(X, t), -X, "kl_div: `target` must be probabilities in [0, 1]"),
    (
        lambda t: F.kl_div(X, t, log_target=True),
        X,
        "kl_div: `target` must be logarithms of probabilities, 0 or less",
    ),
    (lambda t: F.soft_margin_loss(X, t), 0 * X, "soft_margin_loss: `target` must be 1 or -1"),
    (
        lambda t: F.hinge_embedding_loss(X, t),
        0 * X,
        "hinge_embedding_loss: `target` must be 1 or -1",
    ),
    (
        lambda t: F.margin_ranking_loss(X, X, t),
        2 * X,
        "margin_ranking_loss: `target` must be 1 or -1",
    ),
    (
        lambda t: F.cosine_embedding_loss(X, X, t),
        jnp.zeros(2),
        "cosine_embedding_loss: `target` must be 1 or -1",
    ),
    (lambda v: F.gaussian_nll_loss(X, X, v), -X, "gaussian_nll_loss: `var` must be 0 or more"),
    (
        lambda t: F.poisson_nll_loss(X, t),
        -X,
        "poisson_nll_loss: `target` must be counts of 0 or more",
    ),
    (
        lambda r: F.poisson_nll_loss(r, X, log_input=False),
        -X,
        "poisson_nll_loss: `input` must be expected counts of 0 or more",
    ),
    (lambda d: F.huber_loss(X, X, delta=d), jnp.float32(0), "huber_loss: `delta` must be positive"),
    (
        lambda b: F.smooth_l1_loss(X, X, beta=b),
        jnp.float32(-1),
        "smooth_l1_loss: `beta` must be 0 or more",
    ),
    (
        lambda e: F.cross_entropy(X, Y, label_smoothing=e),
        jnp.float32(2),
        "cross_entropy: `label_smoothing` must be between 0 and 1",
    ),
    (
        lambda e: F.poisson_nll_loss(X, X, log_input=False, eps=e),
        jnp.float32(-1),
        "poisson_nll_loss: `eps` must be 0 or more",
    ),
    (
        lambda e: F.gaussian_nll_loss(X, X, X, eps=e),
        jnp.float32(-1),
        "gaussian_nll_loss: `eps` must be 0 or more",
    ),
    (
        lambda m: F.triplet_margin_loss(X, X, X, margin=m),
        jnp.float32(0),
        "triplet_margin_loss: `margin` must be positive",
    ),
    (
        lambda e: F.cosine_similarity(X, X, eps=e),
        jnp.float32(-1),
        "cosine_similarity: `eps` must be 0 or more",
    ),
    (
        lambda y: jaxloss.linear_softmax_cross_entropy(X, X, y),
        LABELS,
        "linear_softmax_cross_entropy: `labels` must be a class in [0, 2) that takes part",
    ),
    (
        lambda t: F.linear_cross_entropy(X, X, t, reduction="sum"),
        jnp.full((2, 2), 2.0),
        "linear_cross_entropy: `target` must be probabilities in [0, 1]",
    ),
    (
        lambda y: jaxloss.ctc_loss(LOGITS, FRAMES, y, PADDINGS),
        3 * SPOKEN,
        "ctc_loss: `labels` must be symbols in [0, 3)",
    ),
    (
        lambda y: F.ctc_loss(IN_TIME, y, LENGTHS, (2, 2)),
        0 * SPOKEN,
        "ctc_loss: `targets` must not contain the blank, 0",
    ),
    (
        lambda n: F.ctc_loss(IN_TIME, SPOKEN, n, (2, 2)),
        jnp.array([5, 6]),
        "ctc_loss: `input_lengths` must be in [0, 5]",
    ),
    *(
        (
            lambda y, function=function: function(X, y),
            LABELS,
            f"{function.__name__}: `labels` must be a class in [0, 3) that takes part",
        )
        for function in (
            jaxloss.multiclass_hinge_loss,
            jaxloss.multiclass_perceptron_loss,
            jaxloss.multiclass_sparsemax_loss,
            jaxloss.softmax_focal_loss_with_integer_labels,
        )
    ),
    *(
        (lambda t, function=function: function(X, t), 0 * X, f"{function.__name__}: `targets` must")
        for function in (jaxloss.hinge_loss, jaxloss.perceptron_loss)
    ),
    (lambda y: jaxloss.sparsemax_loss(X, y), 2 * X, "sparsemax_loss: `labels` must be 0 or 1"),
    *(
        (
            lambda y, function=function: function(X, y),
            -X,
            f"{function.__name__}: `labels` must be probabilities in [0, 1]",
        )
        for function in (
            jaxloss.sigmoid_focal_loss,
            jaxloss.poly_loss_cross_entropy,
            jaxloss.safe_softmax_cross_entropy,
        )
    ),
    (
        lambda t: jaxloss.generalized_kl_divergence(X, t),
        -X,
        "generalized_kl_divergence: `targets` must be 0 or more",
    ),
    (
        lambda y: jaxloss.ranking_softmax_loss(X, y),
        -X,
        "ranking_softmax_loss: `labels` must be 0 or more",
    ),
    (
        lambda t: jaxloss.dice_loss(X, t),
        2 * X,
        "dice_loss: `targets` must be probabilities in [0, 1]",
    ),
    (
        lambda p: jaxloss.dice_loss(p, X, apply_softmax=False),
        X,
        "dice_loss: `predictions` must sum to 1 over the classes",
    ),
    (
        lambda p: jaxloss.binary_dice_loss(p, X, apply_sigmoid=False),
        2 * X,
        "binary_dice_loss: `predictions` must be probabilities in [0, 1]",
    ),
    (
        lambda g: jaxloss.sigmoid_focal_loss(X, X, gamma=g),
        jnp.float32(-1),
        "sigmoid_focal_loss: `gamma` must be 0 or more",
    ),
    (
        lambda y: jaxloss.softmax_statistics(X, y),
        jnp.array([[0, 1], [2, 3]]),
        "softmax_statistics: `labels` must be a class in [0, 3) that takes part",
    ),
    (
        lambda t: jaxloss.softmax_statistics(X, Y, temperature=t),
        jnp.float32(0),
        "softmax_statistics: `temperature` must be positive",
    ),
    (
        lambda t: jaxloss.softmax_cross_entropy(X, jnp.abs(X) / 9, softcap=t),
        jnp.float32(0),
        "softmax_cross_entropy: `softcap` must be positive",
    ),
    (
        lambda t: jaxloss.ntxent(X, Y, t),
        jnp.float32(0),
        "ntxent: `temperature` must be positive",
    ),
    (
        lambda t: jaxloss.info_nce_loss(X, X, temperature=t),
        jnp.float32(0),
        "info_nce_loss: `temperature` must be positive",
    ),
    (
        lambda y: jaxloss.ctc_loss_with_forward_probs(LOGITS, FRAMES, y, PADDINGS),
        3 * SPOKEN,
        "ctc_loss_with_forward_probs: `labels` must be symbols in [0, 3)",
    ),
    (
        jax.jit(lambda n: F.ctc_loss(IN_TIME, SPOKEN.ravel(), LENGTHS, n)),
        jnp.array([2, 1]),
        "ctc_loss: `targets` must hold as many targets as `target_lengths` count",
    ),
]
FAULT_IDS = [f[2][:60] for f in FAULTS]
TRANSFORMS = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "vmap": lambda f: lambda v: jax.vmap(f)(v[None]),
    "scan": lambda f: lambda v: jax.lax.scan(lambda c, row: (c, f(row)), 0, v[None])[1],
}


def differentiated(f):
    """The gradient with respect to a factor of the value, for integer values too."""
    return lambda v: jax.grad(lambda s: s * sum(map(jnp.sum, jax.tree.leaves(f(v)))))(1.0)


@pytest.mark.parametrize(("call", "fault", "words"), FAULTS, ids=FAULT_IDS)
def test_value_condition_fires_under_checkify(call, fault, words):
    error, _ = checkify.checkify(call)(fault)
    with pytest.raises(checkify.JaxRuntimeError, match=re.escape(words)):
        error.throw()


@pytest.mark.parametrize(
    "transform", [*TRANSFORMS.values(), differentiated], ids=[*TRANSFORMS, "grad"]
)
def test_value_condition_fires_through_transforms(transform):
    for call, fault, words in (FAULTS[0], FAULTS[8], FAULTS[-2]):
        error, _ = checkify.checkify(transform(call))(fault)
        with pytest.raises(checkify.JaxRuntimeError, match=re.escape(words)):
            error.throw()


def _cross_entropy(y):
    return lambda x: F.cross_entropy(x, y)


def _descent(x, y, gradient):
    return jax.lax.scan(lambda x, _: (x - gradient(x, y), None), x, None, length=2)[0]


def _gradient(x, y):
    return jax.grad(_cross_entropy(y))(x)


@pytest.mark.parametrize(
    "step",
    [
        _gradient,
        jax.jit(_gradient),
        lambda x, y: jax.grad(jax.checkpoint(_cross_entropy(y)))(x),
        lambda x, y: _descent(x, y, _gradient),
        lambda x, y: jax.lax.cond(x[0, 0] < 9, _gradient, lambda x, y: x, x, y),
        lambda x, y: jax.grad(lambda x: jax.lax.map(lambda _: F.cross_entropy(x, y), x).sum())(x),
        lambda x, y: jax.vmap(jax.grad(lambda x, y: F.cross_entropy(x, y)))(x, y),
        lambda x, y: jax.hessian(_cross_entropy(y))(x),
        lambda x, y: jax.jvp(_cross_entropy(y), (x,), (x,))[1],
        lambda x, y: jax.vjp(_cross_entropy(y), x)[1](1.0),
    ],
    ids=("grad jit checkpoint scan cond map vmap hessian jvp vjp").split(),
)
def test_conditions_stay_where_only_derivatives_are_used(step):
    assert not jax.make_jaxpr(step)(X, Y).effects
    for labels, words in ((Y, "None"), (LABELS, "cross_entropy: `target` must be a class")):
        error, _ = checkify.checkify(step)(X, labels)
        assert str(error.get()).startswith(words)


def test_no_fault_no_error():
    for call, value in (
        (lambda y: F.cross_entropy(X, y), jnp.array([0, -100])),
        (lambda p: F.binary_cross_entropy(p, X), X),
        (lambda m: F.triplet_margin_loss(X, X, X, margin=m), jnp.float32(1)),
        (lambda y: F.multilabel_margin_loss(X, y), jnp.array([[0, -1, 99]] * 2)),
    ):
        error, _ = checkify.checkify(call)(value)
        error.throw()


def test_masked_faults_are_no_faults():
    where = jnp.array([[True], [False]])
    error, _ = checkify.checkify(
        lambda y: jaxloss.softmax_cross_entropy_with_integer_labels(X, y, where=where)
    )(LABELS)
    error.throw()


def test_value_conditions_cost_nothing(monkeypatch):
    calls, faults = zip(*[fault[:2] for fault in FAULTS], strict=True)

    def program():  # Of all at once: most of the time of a small one is not its own.
        def all_of_them(*values):
            return [call(value) for call, value in zip(calls, values, strict=True)]

        jax.clear_caches()  # Every other test's programs go as well.
        assert not jax.make_jaxpr(all_of_them)(*faults).effects
        return hlo.sequence(hlo.lowered(all_of_them, *faults).compile())

    checked = program()
    monkeypatch.setattr(xla, "checked", lambda values, _: values)
    try:
        assert checked == program()
    finally:
        jax.clear_caches()  # No other test shall find what was traced without conditions.
