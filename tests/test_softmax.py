"""The softmax of the Dice losses, whose derivative has a form for each platform."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from choices import choices_for

import jaxloss
from jaxloss.core.classes.axes import ClassAxes
from jaxloss.core.classes.softmax import softmax

inf = math.inf


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_derivatives_at_a_confident_peak(platform):
    with choices_for(platform):
        x = np.array([[0, -30, -31], [-inf, 0, -80], [0, 0, -40], [-inf, -inf, -inf]], np.float32)
        t = jnp.asarray([[1.0, 0.5, 0], [0, 1, 0.25], [0.5, 0, 1], [1, 0, 0]], jnp.float32)
        v = jnp.asarray([[1.0, 2, 3], [0, 1, -2], [2, 1, 3], [1, 1, 1]], jnp.float32)

        def loss(x, t):
            return jnp.sum(softmax(x, None, ClassAxes((1,)))[0] * t)

        gradient = jax.grad(loss)(x, t)
        along = jax.jvp(lambda x: loss(x, t), (x,), (v,))[1]
    with jax.enable_x64(True):
        wide = [np.asarray(y, np.float64) for y in (x, t, v)]
        exps = np.exp(wide[0])
        p = exps / np.maximum(exps.sum(1, keepdims=True), 1e-300)
        differences = wide[1][:, :, None] - wide[1][:, None, :]
        wanted = np.sum(p[:, :, None] * p[:, None, :] * differences, 2)
    np.testing.assert_allclose(gradient, wanted, rtol=2e-6)
    np.testing.assert_allclose(along, np.sum(wanted * wide[2]), rtol=2e-6)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_second_derivatives_beside_a_row_of_infinities(platform):
    x = jnp.array([[[0.0, 1, 2], [-inf, -inf, -inf], [1, 2, 3]]])
    direction = jnp.zeros_like(x).at[0, 0, 0].set(1)
    targets = jnp.eye(3)[None]
    with choices_for(platform):

        def loss(x):
            return jnp.sum(jaxloss.dice_loss(x, targets))

        def along(x):
            return jax.jvp(loss, (x,), (direction,))[1]

        reverse = jax.jvp(jax.grad(loss), (x,), (direction,))[1]
        forward = jax.jvp(along, (x,), (direction,))[1]
    np.testing.assert_array_equal(reverse[0, 1], np.zeros(3))
    np.testing.assert_allclose(forward, reverse[0, 0, 0], rtol=1e-5)
    assert np.isfinite(reverse).all()
