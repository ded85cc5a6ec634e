"""Finite inputs give no NaN, infinities stay infinite, confidence keeps its digits."""

import contextlib
import functools
import inspect
import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import BY_NAME, LOSSES, C, arrays
from choices import choices_for
from hypothesis.extra import numpy as hnp
from jax import lax

import jaxloss
from jaxloss import functional as F

# Floats that formulas trip over, among ordinary ones.
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 40.0, -40.0, 90.0, 100.0, 1e4, -1e4]
TINY = [1e-6, 1e-8, -1e-8, 1e-20, -1e-20, 1e-25, 1e-30]
HUGE = [1e8, -1e8, 1e10, 1e18, -1e18, 1e20, -1e20]
LENGTH = 3
# Inputs of other shapes have tests of their own.
OTHERS = ("multilabel_margin", "linear", "linear_smoothed", "ctc", "rnnt")
MASKLESS = [
    loss for loss in LOSSES if loss.name not in OTHERS and loss.inputs()[0].shape[1:] in ((), (C,))
]

# GPUs and TPUs take norms in another way, so that these come twice.
NORMS = [x for x in MASKLESS if re.match("cosine|distance_2|triplet|ntxent|info_nce", x.name)]
CHOICES = [(x, None) for x in MASKLESS] + [(x, "cuda") for x in NORMS]


def drawn(values):
    # A gradient of order 1 / |x| is beyond float32 where x is smaller still.
    ordinary = st.floats(-10, 10, width=32).map(lambda x: x if abs(x) > 1e-30 else 0.0)
    elements = st.one_of(st.sampled_from(values), ordinary)
    return hnp.arrays(np.float32, (3, 2, LENGTH), elements=elements)


@functools.cache
def programs(name, platform=None):
    """Value, gradient and Hessian-vector product on valid inputs made of any floats."""
    loss = BY_NAME[name]
    # Without its own jit, which would keep what it was traced to for a CPU.
    function = inspect.unwrap(getattr(jaxloss, loss.core))
    template = loss.inputs()

    def inputs(values):
        args = []
        for position, like in enumerate(template):
            if like.dtype.kind == "i":
                args.append(jnp.argmax(values[0], -1).astype(jnp.int32))
            else:
                args.append(values[position] if like.ndim == 2 else values[position, :, 0])
        return loss.domain(*args)

    options = {k: v[:LENGTH] if isinstance(v, np.ndarray) else v for k, v in loss.options.items()}

    def value(args, x):
        with choices_for(platform) if platform else contextlib.nullcontext():
            return function(x, *args[1:], **arrays(options))

    @jax.jit
    def run(values):
        args = inputs(values)
        f = functools.partial(value, args)
        gradient = jax.grad(lambda x: f(x).sum())
        tangent = jnp.ones_like(args[0])
        return args, f(args[0]), gradient(args[0]), jax.jvp(f, args[:1], (tangent,))[1]

    @jax.jit
    def second(values):
        args = inputs(values)
        gradient = jax.grad(lambda x: value(args, x).sum())
        return jax.jvp(gradient, args[:1], (jnp.ones_like(args[0]),))[1]

    return run, second, options


@pytest.mark.parametrize(("loss", "platform"), CHOICES, ids=str)
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)
@hypothesis.given(data=st.data())
def test_no_nan_from_finite_inputs(loss, platform, data):
    run, _, options = programs(loss.name, platform)
    values = data.draw(drawn(SPECIAL + TINY + HUGE))
    args, value, gradient, forward = run(values)
    assert not np.any(np.isnan(value)), args
    assert not np.any(np.isnan(gradient)), args
    assert not np.any(np.isnan(forward)), args
    exact = getattr(oracle, loss.core)(
        *(np.asarray(a, np.float64) if a.dtype.kind == "f" else np.asarray(a) for a in args),
        **options,
    )
    representable = np.abs(exact) < 1e38
    assert np.all(np.isfinite(np.asarray(value)[representable])), args


@pytest.mark.parametrize(("loss", "platform"), CHOICES, ids=str)
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True, database=None)
@hypothesis.given(data=st.data())
def test_no_nan_in_second_order(loss, platform, data):
    _, second, _ = programs(loss.name, platform)
    values = data.draw(drawn(SPECIAL + TINY[:3] + HUGE[:2]))
    assert not np.any(np.isnan(second(values))), values


def nll(logits, label=0):
    return jaxloss.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), label)


def probabilities_nll(logits, label=0):
    logits = jnp.asarray(logits)
    return jaxloss.softmax_cross_entropy(logits, jax.nn.one_hot(label, len(logits)))


@pytest.mark.parametrize("f", [nll, probabilities_nll])
@pytest.mark.parametrize("gap", [1.0, 10.0, 17.5, 30.0, 80.0])
def test_confident_cross_entropy(f, gap):
    exact = np.log1p(np.exp(-gap))
    np.testing.assert_allclose(f([gap, 0.0]), exact, rtol=1e-6)
    p = 1 / (1 + np.exp(gap))
    np.testing.assert_allclose(jax.grad(f)(jnp.array([gap, 0.0])), [-p, p], rtol=1e-6)


def test_confident_cross_entropy_figures():
    np.testing.assert_allclose(nll([17.5, 0.0]), 2.510999e-8, rtol=1e-6)
    np.testing.assert_allclose(
        jax.grad(nll)(jnp.array([17.5, 0.0])), [-2.510999e-8, 2.510999e-8], rtol=1e-6
    )


@pytest.mark.parametrize("f", [nll, probabilities_nll])
def test_cross_entropy_is_shift_invariant(f):
    for logits in (np.full(7, 1e8), np.full(7, -3e38), np.zeros(7)):
        np.testing.assert_allclose(f(np.float32(logits)), np.log(7), rtol=1e-6)
    exact = np.log(2 + np.exp(-1.0))
    np.testing.assert_allclose(f(jnp.array([4096.0, 4096.0, 4095.0])), exact, rtol=1e-6)


@pytest.mark.parametrize("f", [nll, probabilities_nll])
def test_a_class_of_probability_0(f):
    logits = jnp.array([-jnp.inf, 0.0, 1.0])
    assert f(logits, 0) == jnp.inf
    p = np.exp([-np.inf, 0, 1]) / (1 + np.e)
    np.testing.assert_allclose(jax.grad(f)(logits, 0), p - [1, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(f(logits, 1), np.log(1 + np.e), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(f)(logits, 1), p - [0, 1, 0], rtol=1e-6)
    assert np.all(np.isfinite(jax.hessian(f)(logits, 1)))
    assert np.all(np.isfinite(jax.hessian(f)(logits, 0)))


def test_smoothing_over_a_class_of_probability_0():
    logits = jnp.array([[-jnp.inf, 0.0, 1.0]])
    f = jaxloss.softmax_cross_entropy_with_integer_labels
    assert f(logits, jnp.array([1]), label_smoothing=0.1) == jnp.inf
    traced_zero = jax.jit(lambda e: f(logits, jnp.array([1]), label_smoothing=e))(0.0)
    np.testing.assert_allclose(traced_zero, np.log(1 + np.e), rtol=1e-6)
    weights = jnp.array([0.0, 1.0, 1.0])
    assert np.isfinite(f(logits, jnp.array([1]), label_smoothing=0.1, class_weights=weights))


def test_zero_times_infinity():
    kl = jaxloss.kl_divergence
    log_p, t = jnp.array([-jnp.inf, 0.0]), jnp.array([0.0, 1.0])
    assert kl(log_p, t) == 0
    np.testing.assert_array_equal(jax.grad(kl)(log_p, t), [0, -1])
    np.testing.assert_array_equal(jax.grad(kl, 1)(log_p, t), [0, 1])
    assert kl(log_p, t[::-1]) == jnp.inf
    np.testing.assert_array_equal(jax.grad(kl)(log_p, t[::-1]), [-1, 0])

    kl = jaxloss.kl_divergence_with_log_targets
    log_t = jnp.array([-jnp.inf, 0.0])
    assert kl(log_p, log_t) == 0
    np.testing.assert_array_equal(jax.grad(kl)(log_p, log_t), [0, -1])
    np.testing.assert_array_equal(jax.grad(kl, 1)(log_p, log_t), [0, 1])

    rate = functools.partial(jaxloss.poisson_nll_loss, log_input=False, eps=0.0)
    assert rate(0.0, 0.0) == 0
    assert jax.grad(rate)(0.0, 0.0) == 1
    assert rate(0.0, 1.0) == jnp.inf
    assert jaxloss.poisson_nll_loss(-jnp.inf, 0.0) == 0
    assert jax.value_and_grad(jaxloss.poisson_nll_loss)(jnp.inf, 3.0) == (jnp.inf, jnp.inf)
    nll_loss = F.nll_loss(
        jnp.array([[-jnp.inf, 0.0]]), jnp.array([0]), jnp.array([0.0, 1.0]), reduction="sum"
    )
    assert nll_loss == 0

    bce = jaxloss.sigmoid_binary_cross_entropy
    assert bce(jnp.inf, 1.0) == 0
    assert bce(-jnp.inf, 0.0) == 0
    assert bce(-jnp.inf, 1.0) == jnp.inf
    assert jax.grad(bce)(-jnp.inf, 1.0) == -1
    assert jax.grad(bce)(jnp.inf, 1.0) == 0


@pytest.mark.parametrize("size", [1e20, 1e-25])
def test_norms_neither_overflow_nor_vanish(size):
    x1 = jnp.array([3.0, 4.0]) * np.float32(size)
    x2 = jnp.array([4.0, 3.0]) * np.float32(size)
    zero = jnp.zeros(2)
    for p, factor in ((2.0, 5.0), (3.0, 91 ** (1 / 3)), (0.5, 7 + 4 * 3**0.5), (-1.0, 12 / 7)):

        def distance(x, p=p):
            return jaxloss.pairwise_distance(x, zero, p=p, eps=0.0)

        np.testing.assert_allclose(distance(x1), factor * np.float64(np.float32(size)), rtol=1e-6)
        slope = (factor / np.array([3.0, 4.0])) ** (1 - p)
        np.testing.assert_allclose(jax.grad(distance)(x1), slope, rtol=2e-6)
    np.testing.assert_allclose(jaxloss.cosine_similarity(x1, x2), 0.96, rtol=1e-6)
    np.testing.assert_allclose(jaxloss.cosine_embedding_loss(x1, x2, jnp.array(1)), 0.04, rtol=1e-5)
    gradient = jax.grad(jaxloss.cosine_similarity)(x1, x2)
    wanted = (np.array([0.8, 0.6]) - 0.96 * np.array([0.6, 0.8])) / 5 / size
    np.testing.assert_allclose(gradient, wanted, rtol=2e-6)


@pytest.mark.parametrize("name", ["distance", "cosine", "complex"])
def test_an_extreme_vector_leaves_the_others_alone(name):
    # Norms are shielded from overflow for a whole batch or for none of it.
    def losses(x1, x2):
        if name == "distance":
            return jaxloss.pairwise_distance(x1, x2, eps=0.0)
        if name == "cosine":
            return jaxloss.cosine_similarity(x1, x2)
        return jnp.sum(jaxloss.absolute_error(lax.complex(x1, x2)), -1)

    sizes = np.array([1, 1e20, 1e-25, 0, 2e6, 1e-19, 4e-7, 1e-7], np.float32)[:, None]
    x1, x2 = np.random.default_rng(0).normal(size=(2, 8, 3)).astype(np.float32)
    gradients = jax.jit(jax.value_and_grad(lambda *x: jnp.sum(losses(*x)), (0, 1)))
    for a, b in ((x1 * sizes, x2 * sizes), (x1 * sizes, x2), (x1 * sizes, 0 * x2)):
        together = jax.jit(losses)(a, b), *gradients(a, b)[1]
        for i in range(len(a)):
            alone, slopes = gradients(a[i], b[i])
            for got, wanted in zip(together, (alone, *slopes), strict=True):
                largest = float(jnp.max(jnp.abs(wanted)))
                np.testing.assert_allclose(got[i], wanted, rtol=2e-6, atol=1e-6 * largest)


@pytest.mark.parametrize(("count", "size"), [(64, 1e-37), (1024, 1e-36), (4, 1e38), (64, 1e37)])
def test_norms_in_forward_mode(count, size):
    x, ones = jnp.full(count, size), jnp.ones(count)

    def distance(x):
        return jaxloss.pairwise_distance(x, jnp.zeros(count), eps=0.0)

    _, tangent = jax.jvp(distance, (x,), (ones,))
    np.testing.assert_allclose(tangent, np.sqrt(count), rtol=1e-6)
    cosine, tangent = jax.jvp(lambda x: jaxloss.cosine_similarity(x, ones), (x,), (ones,))
    np.testing.assert_allclose(cosine, 1, rtol=1e-6)
    assert abs(tangent) <= 1e-6 / size


KINKS = {
    "3-norm": lambda x: jaxloss.pairwise_distance(x, jnp.zeros_like(x), p=3.0, eps=0.0),
    "2-norm": lambda x: jaxloss.pairwise_distance(x, jnp.zeros_like(x), eps=0.0),
    "cosine": lambda x: jaxloss.cosine_similarity(x, jnp.ones_like(x)),
    "huber": jaxloss.huber_loss,
    "soft margin": lambda x: jaxloss.soft_margin_loss(x, jnp.ones_like(x)),
    "logits": lambda x: jaxloss.sigmoid_binary_cross_entropy(x, jnp.ones_like(x)),
    "margin": lambda x: jaxloss.multi_margin_loss(x, jnp.zeros(len(x), jnp.int32), p=2),
}


@pytest.mark.parametrize("name", KINKS)
def test_second_order_at_kinks_inside_a_scan(name):
    # There some versions of JAX lose custom rules; then bodies are differentiated.
    def plain(x):
        return jnp.sum(KINKS[name](x))

    def scanned(x):
        return jax.lax.scan(lambda total, x: (total + plain(x), None), 0.0, x[None])[0]

    corners = jnp.array([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [1.0, -1.0, -0.0]])

    @jax.jit
    def hessians(x):
        inside = jax.hessian(scanned)(x), jax.jacrev(jax.jacrev(scanned))(x)
        return jax.hessian(plain)(x), inside

    for x in (corners, corners.at[1].set(2.0)):  # Vectors of 0 need more than others.
        wanted, inside = hessians(x)
        assert np.all(np.isfinite(wanted))
        for got in inside:
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_large_vectors_through_torch_door():
    x = jnp.full((1, 4), 1e20)
    np.testing.assert_allclose(F.cosine_similarity(x, x), 1, rtol=1e-6)
    np.testing.assert_allclose(F.pairwise_distance(x, -x), 4e20, rtol=1e-6)
    np.testing.assert_allclose(F.triplet_margin_loss(x, x, -x), 0)
    # Below eps torch's quotient is no cosine any more: x / eps.
    np.testing.assert_allclose(
        F.cosine_similarity(1e-25 * x / 1e20, x), 4e-25**0 * 2e-17, rtol=1e-5
    )


def test_smooth_l1_without_a_curve_and_without_an_end_to_it():
    errors = jnp.array([0.0, 1e-30, 0.5, 3.0, 1e20])
    np.testing.assert_array_equal(jaxloss.smooth_l1_loss(errors, beta=0.0), errors)
    np.testing.assert_array_equal(jaxloss.smooth_l1_loss(errors, beta=jnp.inf), jnp.zeros(5))
    slopes = jax.grad(lambda x: jaxloss.smooth_l1_loss(x, beta=0.0).sum())(errors)
    np.testing.assert_array_equal(slopes, [0, 1, 1, 1, 1])


def test_soft_margin_does_not_overflow():
    assert jaxloss.soft_margin_loss(-1000.0, 1.0) == 1000
    assert jax.grad(jaxloss.soft_margin_loss)(-1000.0, 1.0) == -1
    assert jaxloss.soft_margin_loss(1000.0, 1.0) == 0


def test_gaussian_of_large_error_and_variance():
    f = jaxloss.gaussian_nll_loss
    np.testing.assert_allclose(f(1e20, 0.0, 1e20), 0.5 * (np.log(1e20) + 1e20), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(f, 2)(1e20, 0.0, 1e20), -0.5, rtol=1e-6)


def test_nan_stays_nan():
    for loss in LOSSES:
        args = loss.inputs()
        value = loss.losses(args[0].at[0].set(jnp.nan), *args[1:])
        assert np.all(np.isnan(value[0])), loss


def test_nan_of_the_student_is_in_the_gradient_of_the_teacher():
    def divergence(teacher):
        student = jnp.array([[jnp.nan, 1.0, 2.0]])
        return jaxloss.linear_softmax_divergence(student, jnp.eye(3), teacher, jnp.eye(3)).sum()

    assert np.all(np.isnan(jax.grad(divergence)(jnp.array([[0.0, 1.0, 2.0]]))))
