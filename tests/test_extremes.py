"""Finite inputs give no NaN, infinities stay infinite, confidence keeps its digits."""

import contextlib
import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import LOSSES, C, arrays
from choices import choices_for
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

EXAMPLES = 200
# These take products of vectors as they are: beyond float32 they are infinite, or NaN.
OF_PRODUCTS = ("info_nce", "sigmoid_contrastive", "supervised_contrastive")


def drawn(values):
    """One of these in half of the places, else ordinary floats; in some examples mostly one."""
    rng = np.random.default_rng(0)
    shape = (EXAMPLES, 3, 2, LENGTH)
    round_to = 10.0 ** rng.integers(0, 6, shape)
    ordinary = np.round(rng.uniform(-10, 10, shape) * round_to) / round_to
    found = np.where(rng.random(shape) < 0.5, rng.choice(values, shape), ordinary)
    alike = rng.random(shape) < rng.choice([0, 0.5, 0.9], (EXAMPLES, 1, 1, 1))
    return np.where(alike, found[:, :1, :1, :1], found).astype(np.float32)


FIRST = drawn(SPECIAL + TINY + HUGE)
# A curvature of order 1 / x^2 is beyond float32 where x is smaller still.
SECOND = drawn(SPECIAL + TINY[:3] + HUGE[:2])


def program(loss, platform, options):
    """Valid inputs made of any floats, and value, gradient and derivatives of both there."""
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

    def one(values):
        args = inputs(values)

        def value(x):
            with choices_for(platform) if platform else contextlib.nullcontext():
                return function(x, *args[1:], **arrays(options))

        gradient = jax.grad(lambda x: value(x).sum())
        found = {"value": value(args[0]), "gradient": gradient(args[0])}
        tangent = (jnp.ones_like(args[0]),)
        _, found["forward"] = jax.jvp(value, args[:1], tangent)
        _, found["second"] = jax.jvp(gradient, args[:1], tangent)
        return args, found

    # One after another: a batch of them would be another program.
    return jax.jit(lambda examples: lax.map(one, examples))


def fit(loss, args):
    """Whether all that the loss makes of an example is within float32."""
    if loss.name not in OF_PRODUCTS:
        return np.ones(EXAMPLES, bool)
    one, *others = (np.asarray(x, np.float64) for x in args if x.dtype == np.float32)
    products = one @ np.moveaxis(others[0] if others else one, 1, 2)
    return (np.abs(products) < 1e38).all((1, 2))


@pytest.mark.parametrize(("loss", "platform"), CHOICES, ids=str)
def test_nan_comes_from_nan_alone(loss, platform):
    options = {k: v[:LENGTH] if isinstance(v, np.ndarray) else v for k, v in loss.options.items()}
    run = program(loss, platform, options)

    def check(args, found):
        """Says for which arguments there is a NaN."""
        fits = fit(loss, args)
        assert np.mean(fits) > 0.25
        nan = fits & np.isnan(found).reshape(EXAMPLES, -1).any(1)
        assert not np.any(nan), [x[nan][0] for x in args]

    args, found = run(FIRST)
    for what in ("value", "gradient", "forward"):
        check(args, found[what])
    value = np.asarray(found["value"])
    infinite = ~np.isfinite(value).reshape(EXAMPLES, -1).all(1)
    for i in np.flatnonzero(fit(loss, args) & infinite):
        example = [np.asarray(a[i]) for a in args]
        exact = getattr(oracle, loss.core)(
            *(a.astype(np.float64) if a.dtype.kind == "f" else a for a in example), **options
        )
        representable = np.abs(exact) < 1e38
        assert np.all(np.isfinite(value[i][representable])), example
    args, found = run(SECOND)
    check(args, found["second"])
    if not loss.mixes:
        spoiled = FIRST.copy()
        spoiled[:, 0, 0] = np.nan
        assert np.all(np.isnan(run(spoiled)[1]["value"][:, 0]))


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
    @jax.jit
    def derivatives(logits, label):
        return f(logits, label), jax.grad(f)(logits, label), jax.hessian(f)(logits, label)

    logits, p = np.array([-np.inf, 0, 1], np.float32), np.exp([-np.inf, 0, 1]) / (1 + np.e)
    value, slope, curvature = derivatives(logits, 0)
    assert value == np.inf
    np.testing.assert_allclose(slope, p - [1, 0, 0], rtol=1e-6)
    assert np.all(np.isfinite(curvature))
    value, slope, curvature = derivatives(logits, 1)
    np.testing.assert_allclose(value, np.log(1 + np.e), rtol=1e-6)
    np.testing.assert_allclose(slope, p - [0, 1, 0], rtol=1e-6)
    assert np.all(np.isfinite(curvature))


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

    corners = np.array([[3, 4, 0], [0, 0, 0], [1, -1, -0.0]], np.float32)
    others = corners.copy()
    others[1] = 2

    @jax.jit
    def hessians(x):
        inside = jax.hessian(scanned)(x), jax.jacrev(jax.jacrev(scanned))(x)
        return jax.hessian(plain)(x), inside

    for x in (corners, others):  # Vectors of 0 need more than others.
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


@pytest.mark.parametrize("loss", [x for x in LOSSES if x.mixes or x not in MASKLESS], ids=str)
def test_nan_stays_nan(loss):
    first, *others = loss.inputs()
    spoiled = np.array(first)
    spoiled[0] = np.nan
    assert np.all(np.isnan(loss.losses(spoiled, *others)[0]))


def test_nan_of_the_student_is_in_the_gradient_of_the_teacher():
    def divergence(teacher):
        student = jnp.array([[jnp.nan, 1.0, 2.0]])
        return jaxloss.linear_softmax_divergence(student, jnp.eye(3), teacher, jnp.eye(3)).sum()

    assert np.all(np.isnan(jax.grad(divergence)(jnp.array([[0.0, 1.0, 2.0]]))))
