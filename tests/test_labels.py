"""Bad labels are loud, and only in their own example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import LABELLED, C, N

import jaxloss
from jaxloss import functional as F

BAD = [-1, C, -C, -2, 2**31 - 1, -(2**31)]
LABELLED_IDS = [f"{loss}-{door}" for loss, door in LABELLED]


@pytest.mark.parametrize(("loss", "door"), LABELLED, ids=LABELLED_IDS)
def test_bad_label_is_nan_in_its_example_alone(loss, door):
    call = loss.doors()[door]
    x, y = loss.inputs(seed=1)
    others = np.arange(N) != 2

    @jax.jit
    def both(x, y):
        return call(x, y), jax.grad(lambda x: call(x, y).sum())(x)

    wanted, fine = map(np.asarray, both(x, y))
    for bad in BAD:
        value, gradient = map(np.asarray, both(x, y.at[2].set(bad)))
        assert np.isnan(value[2]), bad
        np.testing.assert_array_equal(value[others], wanted[others], err_msg=f"{bad}")
        assert np.all(np.isnan(gradient[2])), bad
        np.testing.assert_allclose(gradient[others], fine[others], rtol=1e-6, err_msg=f"{bad}")


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int16, jnp.uint32])
def test_narrow_labels_do_not_wrap(dtype):
    # Class 256 is not class 0, though an iota in uint8 says so.
    x = jnp.arange(300.0)[None]
    for f in (
        jaxloss.softmax_cross_entropy_with_integer_labels,
        jaxloss.negative_log_likelihood,
        jaxloss.multi_margin_loss,
    ):
        wanted = f(x, jnp.array([44]))
        np.testing.assert_array_equal(f(x, jnp.array([44], dtype)), wanted)
        if jnp.issubdtype(dtype, jnp.signedinteger):
            assert np.isnan(f(x, jnp.array([-1], dtype)))


def test_wide_labels(x64):
    x = jnp.zeros((1, 3), jnp.float32)
    assert np.isnan(F.cross_entropy(x, jnp.array([2**32], jnp.int64)))
    assert np.isfinite(F.cross_entropy(x, jnp.array([2], jnp.int64)))
    assert np.isnan(F.cross_entropy(x, jnp.array([2**32], jnp.uint64)))


def test_multilabel_margin_reads_the_front_only():
    x = jnp.array([[0.1, 0.2, 0.4, 0.8], [0.1, 0.2, 0.4, 0.8]])
    f = jaxloss.multilabel_margin_loss
    read, unread = jnp.array([[3, 4, -1, -1], [3, 0, -1, 1]]), jnp.array([[3, 0, -1, 99]] * 2)
    assert np.isnan(f(x, read)[0])
    assert np.isfinite(f(x, read)[1])
    gradient = jax.grad(lambda x: f(x, read).sum())(x)
    assert np.all(np.isnan(gradient[0]))
    assert np.all(np.isfinite(gradient[1]))
    np.testing.assert_allclose(f(x, unread), 0.85, rtol=1e-6)


@pytest.mark.parametrize(
    "f", [F.cross_entropy, F.nll_loss, F.multi_margin_loss], ids=lambda f: f.__name__
)
def test_bad_label_makes_the_mean_nan_and_spares_other_gradients(f):
    x, y = jnp.zeros((3, 4)), jnp.array([0, 4, 1])
    assert np.isnan(f(x, y))
    gradient = np.asarray(jax.grad(f)(x, y))
    assert np.all(np.isnan(gradient[1]))
    assert np.all(np.isfinite(gradient[[0, 2]]))
    assert np.any(gradient[[0, 2]])


def test_several_class_axes_take_a_flat_index():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
    labels = jnp.array([7, 11])
    for f in (jaxloss.softmax_cross_entropy_with_integer_labels, jaxloss.negative_log_likelihood):
        flat = f(logits.reshape(2, 12), labels)
        np.testing.assert_allclose(f(logits, labels, axis=(1, 2)), flat, rtol=1e-6)
        swapped = f(logits.swapaxes(1, 2), labels, axis=(2, 1))
        np.testing.assert_allclose(swapped, flat, rtol=1e-6)
    weights = jnp.arange(12.0).reshape(3, 4)
    f = jaxloss.softmax_cross_entropy_with_integer_labels
    flat = f(logits.reshape(2, 12), labels, class_weights=weights.ravel())
    np.testing.assert_allclose(
        f(logits.swapaxes(1, 2), labels, axis=(2, 1), class_weights=weights), flat, rtol=1e-6
    )
