"""No temperature is too low or too high, and NaN and infinities are at each what they are at 1."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss


@jax.jit
def at_half(x, labels=None):
    """Statistics and divergences at a temperature."""
    labels = jnp.zeros(len(x), jnp.int32) if labels is None else labels
    statistics = jaxloss.softmax_statistics(x, labels, temperature=0.5)
    eye = jnp.eye(x.shape[1], dtype=x.dtype)
    found = [
        jaxloss.linear_softmax_divergence(*sides, temperature=0.5, beta=beta)
        for beta in (0.0, 0.5, 1.0)
        for sides in ((x, eye, jnp.ones_like(x), eye), (jnp.ones_like(x), eye, x, eye))
    ]
    return jnp.stack([*statistics[:3], *found])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_stays_nan_at_a_temperature(value):
    assert np.all(np.isnan(at_half(jnp.array([[value, 1.0, 2.0]]))))


def test_an_excluded_label_at_a_temperature():
    def loss(x, **temperature):
        return -jaxloss.softmax_statistics(x, jnp.array([0]), **temperature).log_prob.sum()

    x = jnp.array([[-jnp.inf, 1.0]])
    at_one_half = functools.partial(loss, temperature=0.5)
    for derive in (jax.grad, jax.jacfwd):
        np.testing.assert_array_equal(jax.jit(derive(loss))(x), [[-1, 1]])
        np.testing.assert_array_equal(jax.jit(derive(at_one_half))(x), [[-2, 2]])


def test_logits_far_apart_at_a_high_temperature():
    x, hot = jnp.array([[3e38, -3e38]]), jnp.float32(1e30)
    found = jaxloss.softmax_statistics(x, jnp.array([1]), temperature=hot).log_prob
    np.testing.assert_allclose(found, -6e8, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_temperatures_of_narrow_inputs_with_x64(dtype, x64):
    x, labels = jnp.eye(4, dtype=dtype), np.arange(4) // 2
    found = at_half(x), jaxloss.info_nce_loss(x, x), jaxloss.ntxent(x, labels)
    found = *found, jaxloss.supervised_contrastive_loss(x, labels)
    assert all(y.dtype == np.float32 and np.all(np.isfinite(y)) for y in found)


COLD_LOGITS = jnp.array([[1.0, 2.0, 0.5], [3.0, 3.0, -1.0], [0.0, 0.0, 0.0], [1e3, -1e3, 1e20]])
COLD_ROWS = jnp.array([[0.6, 0.8], [1.0, 0.0], [0.8, -0.6], [0.0, -1.0]])
COLD_KERNEL = jnp.array([[1.0, 0.5], [0.25, 1.0], [2.0, -1.0]])
COLD_LABELS = jnp.array([0, 1, 2, 0])
# Many examples that are alike, and embeddings longer than 1, leave little room for sums.
CLUSTERS = 3 * jnp.repeat(COLD_ROWS[:2], 16, 0)


def cold_divergence(beta):
    def f(x, temperature):
        teacher = COLD_ROWS[::-1], COLD_KERNEL[::-1]
        return jaxloss.linear_softmax_divergence(
            x, COLD_KERNEL, *teacher, temperature=temperature, beta=beta
        )

    return f


def cold_statistics(x, temperature):
    found = jaxloss.softmax_statistics(x, COLD_LABELS, temperature=temperature)
    return jnp.stack(found[:3])


def cold_linear_statistics(x, temperature):
    found = jaxloss.linear_softmax_statistics(
        x, COLD_KERNEL, COLD_LABELS, temperature=temperature, softcap=30.0
    )
    return jnp.stack(found[:3])


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (cold_statistics, COLD_LOGITS),
        (cold_linear_statistics, COLD_ROWS),
        *((cold_divergence(beta), COLD_ROWS) for beta in (0.0, 0.5, 1.0)),
        (lambda x, t: jaxloss.info_nce_loss(x, x[::-1], temperature=t), COLD_ROWS),
        (
            lambda x, t: jaxloss.supervised_contrastive_loss(x, COLD_LABELS % 2, temperature=t),
            COLD_ROWS,
        ),
        (lambda x, t: jaxloss.ntxent_per_example(x, COLD_LABELS % 2, t), COLD_ROWS),
        (lambda x, t: jaxloss.info_nce_loss(x, x[::-1], temperature=t), CLUSTERS),
        (
            lambda x, t: jaxloss.supervised_contrastive_loss(
                x, jnp.arange(32) // 16, temperature=t
            ),
            CLUSTERS,
        ),
        (lambda x, t: jaxloss.ntxent_per_example(x, jnp.arange(32) % 2, t), CLUSTERS),
    ],
    ids=[
        *("statistics", "linear", "kl", "js", "reverse kl", "info_nce", "supervised", "ntxent"),
        *("info_nce of many", "supervised of many", "ntxent of many"),
    ],
)
def test_no_temperature_is_too_low_or_high(f, x):
    @jax.jit
    def derivatives(x, temperature):
        def total(*args):
            return jnp.sum(f(*args))

        gradient = jax.grad(total, (0, 1))
        bent = jax.jacfwd(lambda t: gradient(x, t)[1])(temperature)
        return (
            f(x, temperature),
            gradient(x, temperature),
            jax.jacfwd(total, (0, 1))(x, temperature),
            bent,
        )

    for temperature in (1e-12, 1e-20, 1e-30, 1e-37, 1e-39, 1e-45, 3e38):
        value, *slopes = derivatives(x, jnp.float32(temperature))
        assert np.all(np.isfinite(value)), temperature
        for slope in jax.tree.leaves(slopes):
            assert not np.any(np.isnan(slope)), temperature


def test_a_cold_softmax_is_that_of_its_formula():
    """Of logits that over the temperature are no number, and of such that just are."""
    labels = jnp.array([0, 1])
    for logits, temperature in (([1e20, 2e20], 1e-20), ([1.0, 2.0], 1e-37), ([1.0, 2.0], 1e-45)):
        x = jnp.array(logits)[None]
        found = jaxloss.softmax_statistics(x, labels[None], temperature=jnp.float32(temperature))
        assert found.log_prob[0, 0] < -1e36
        assert found.log_prob[0, 1] == found.entropy[0] == 0
        assert found.prediction[0] == 1
    found = jaxloss.softmax_statistics(jnp.array([[1.0, 2.0]]), labels[:1], temperature=1e-30)
    np.testing.assert_allclose(found.log_prob, -1e30, rtol=1e-6)
    np.testing.assert_allclose(found.log_normalizer, 2e30, rtol=1e-6)


def test_temperature_of_an_infinite_divergence():
    """Where only the student excludes a class."""
    bias = jnp.array([0.0, -jnp.inf, 0.5])

    def f(temperature, teacher):
        return jaxloss.linear_softmax_divergence(
            COLD_ROWS, COLD_KERNEL, teacher, COLD_KERNEL, bias=bias, temperature=temperature
        ).sum()

    args = jnp.asarray(0.5), COLD_ROWS[::-1]
    assert f(*args) == jnp.inf
    for mode in (jax.grad, jax.jacfwd):
        by_temperature, by_teacher = jax.jit(mode(f, (0, 1)))(*args)
        assert jnp.isfinite(by_temperature)
        np.testing.assert_array_equal(by_teacher, 0)
