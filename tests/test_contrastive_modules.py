"""Contrastive losses as modules, which learn their temperature, scale and bias."""

# pyright: reportArgumentType=false, reportCallIssue=false
# Options in dictionaries lose their types.

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx
from test_contrastive import WHERE, X1, X2

import jaxloss
from jaxloss import linen, nnx


def called(door, name, **settings):
    """A module of either door, with its first parameters."""
    module = getattr(door, name)(**settings)
    if door is nnx:
        return module
    x = jnp.zeros((2, 3))
    return functools.partial(module.apply, module.init(jax.random.key(0), x, x))


@pytest.mark.parametrize("door", [nnx, linen], ids=["nnx", "linen"])
def test_modules(door):
    x1, x2, where = jnp.asarray(X1, jnp.float32), jnp.asarray(X2, jnp.float32), jnp.asarray(WHERE)
    losses = jaxloss.info_nce_loss(x1, x2, temperature=0.07, where=where)
    loss = called(door, "InfoNCELoss")
    wanted = jaxloss.reduce(losses, where=where)
    np.testing.assert_allclose(loss(x1, x2, where=where), wanted, rtol=1e-5)
    wanted = jaxloss.info_nce_loss(x1, x2, temperature=0.02, symmetric=False)
    loss = called(door, "InfoNCELoss", temperature=0.02, symmetric=False, reduction="none")
    np.testing.assert_allclose(loss(x1, x2), wanted, rtol=1e-5)
    wanted = jaxloss.sigmoid_contrastive_loss(x1, x2, scale=10.0, bias=-10.0).sum()
    loss = called(door, "SigmoidContrastiveLoss", reduction="sum")
    np.testing.assert_allclose(loss(x1, x2), wanted, rtol=1e-5)


def test_modules_learn_their_numbers():
    x1, x2 = jnp.asarray(X1, jnp.float32), jnp.asarray(X2, jnp.float32)
    slopes = flax_nnx.grad(lambda loss: loss(x1, x2))(nnx.SigmoidContrastiveLoss(scale=1.0))

    def mean(scale, bias):
        return jaxloss.sigmoid_contrastive_loss(x1, x2, scale=jnp.exp(scale), bias=bias).mean()

    wanted = jax.grad(mean, (0, 1))(0.0, -10.0)
    mine = slopes["logit_scale"][...], slopes["logit_bias"][...]
    np.testing.assert_allclose(mine, wanted, rtol=1e-5)
    for temperature, moves in ((0.5, True), (0.01, True), (0.009, False)):
        module = nnx.InfoNCELoss()
        module.logit_scale[...] = -jnp.log(temperature)
        loss = jaxloss.info_nce_loss(x1, x2, temperature=max(temperature, 0.01)).mean()
        np.testing.assert_allclose(module(x1, x2), loss, rtol=1e-5)
        slope = flax_nnx.grad(lambda loss: loss(0.1 * x1, 0.1 * x2))(module)["logit_scale"][...]
        assert (slope != 0) == moves


def test_half_parameters_are_widened():
    x1, x2 = jnp.asarray(X1, jnp.float32), jnp.asarray(X2, jnp.float32)
    module = nnx.InfoNCELoss(param_dtype=jnp.bfloat16)
    scale = jnp.exp(module.logit_scale[...].astype(jnp.float32))
    wanted = jaxloss.info_nce_loss(x1, x2, temperature=1 / scale).mean()
    np.testing.assert_allclose(module(x1, x2), wanted, rtol=1e-6)
    module = nnx.SigmoidContrastiveLoss(param_dtype=jnp.bfloat16)
    scale = jnp.exp(module.logit_scale[...].astype(jnp.float32))
    wanted = jaxloss.sigmoid_contrastive_loss(x1, x2, scale=scale, bias=-10.0).mean()
    np.testing.assert_allclose(module(x1, x2), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: nnx.InfoNCELoss(temperature=0.0),
            ValueError,
            "InfoNCELoss: `temperature` must be",
        ),
        (
            lambda: nnx.InfoNCELoss(temperature=0.005),
            ValueError,
            "InfoNCELoss: `temperature` must be 1 / max_scale, 0.01, or more, got 0.005",
        ),
        (
            lambda: linen.SigmoidContrastiveLoss(bias="a"),
            TypeError,
            "SigmoidContrastiveLoss: `bias` must be a number, got str",
        ),
        (lambda: nnx.InfoNCELoss(max_scale=-1.0), ValueError, "InfoNCELoss: `max_scale` must be"),
        (lambda: nnx.InfoNCELoss(chunk_size=0), ValueError, "InfoNCELoss: `chunk_size` must be an"),
        (lambda: nnx.InfoNCELoss(param_dtype=int), TypeError, "InfoNCELoss: `param_dtype` must be"),
        (
            lambda: linen.SigmoidContrastiveLoss(scale=0.0),
            ValueError,
            "SigmoidContrastiveLoss: `scale` must be positive",
        ),
    ],
)
def test_wrong_settings(make, error, message):
    with pytest.raises(error, match=message):
        make()
