"""Masked means absent: the same as deleted, whatever the masked entries hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BY_NAME, MASKED, ROWWISE, UNREDUCED, C, N, arrays

import jaxloss
from jaxloss import functional as F

KEPT = np.array([True, False, True, True, False, True])
POISON = [np.nan, np.inf, -np.inf, 3e38]


def poisoned(args, where, value):
    """The arguments with every float that `where` excludes overwritten."""
    return tuple(
        jnp.where(where, a, value) if a.shape == where.shape and a.dtype.kind == "f" else a
        for a in args
    )


def everything(loss, where, options):
    """Value, gradients, forward derivative and Hessian of a masked loss, as one program."""

    def value(*args):
        return getattr(jaxloss, loss.core)(*args, **arrays(options), where=where)

    @jax.jit
    def run(*args):
        def forward(*floats):
            given = dict(zip(loss.floats, floats, strict=True))
            return value(*(given.get(p, a) for p, a in enumerate(args)))

        floats = tuple(args[p] for p in loss.floats)
        gradients = jax.grad(lambda *a: value(*a).sum(), loss.floats)(*args)
        _, tangent = jax.jvp(forward, floats, tuple(map(jnp.ones_like, floats)))
        hessian = jax.hessian(lambda x: value(x, *args[1:]).sum())(args[0])
        return value(*args), gradients, tangent, hessian

    return run


@pytest.mark.parametrize("loss", MASKED, ids=str)
def test_masked_examples_are_absent(loss):
    args = loss.inputs(seed=1)
    masked = everything(loss, jnp.asarray(KEPT[:, None]), loss.options)
    deleted = everything(loss, None, loss.options)(*(a[KEPT] for a in args))
    for poison in POISON:
        bad = poisoned(args, np.broadcast_to(KEPT[:, None], (N, C)), poison)
        if loss.labels:
            bad = (bad[0], jnp.where(KEPT, bad[1], 10**6))
        value, gradients, tangent, hessian = masked(*bad)
        for mine, wanted in zip((value, *gradients), (deleted[0], *deleted[1]), strict=True):
            np.testing.assert_array_equal(np.asarray(mine)[~KEPT], 0)
            np.testing.assert_allclose(np.asarray(mine)[KEPT], wanted, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(np.asarray(tangent)[~KEPT], 0)
        np.testing.assert_array_equal(np.asarray(hessian)[~KEPT], 0)
        assert np.all(np.isfinite(tangent))
        assert np.all(np.isfinite(hessian))


@pytest.mark.parametrize("loss", MASKED, ids=str)
def test_masked_classes_are_absent(loss):
    args = loss.inputs(seed=2)
    keep = np.array([True, True, False, True, False])
    where = np.broadcast_to(keep, (N, C))
    fewer = tuple(a[:, keep] if a.ndim == 2 else a for a in args)
    if loss.labels:  # The same class has another index once classes are deleted.
        remaining = np.flatnonzero(keep)
        position = np.asarray(args[1]) % len(remaining)
        args = (args[0], jnp.asarray(remaining[position], jnp.int32))
        fewer = (fewer[0], jnp.asarray(position, jnp.int32))
    options = {
        name: v[keep] if isinstance(v, np.ndarray) else v for name, v in loss.options.items()
    }
    masked = everything(loss, jnp.asarray(where), loss.options)
    deleted = everything(loss, None, options)(*fewer)
    for poison in POISON:
        value, gradients, tangent, hessian = masked(*poisoned(args, where, poison))
        np.testing.assert_allclose(value, deleted[0], rtol=1e-5, atol=1e-7)
        for mine, wanted in zip(gradients, deleted[1], strict=True):
            np.testing.assert_array_equal(np.asarray(mine)[~where], 0)
            np.testing.assert_allclose(np.asarray(mine)[:, keep], wanted, rtol=1e-5, atol=1e-7)
        assert np.all(np.isfinite(tangent))
        assert np.all(np.isfinite(hessian))


@pytest.mark.parametrize("loss", MASKED, ids=str)
def test_nothing_takes_part(loss):
    args = tuple(jnp.full_like(a, jnp.nan) if a.dtype.kind == "f" else a for a in loss.inputs())
    for where in (jnp.zeros((N, C), bool), jnp.zeros((1, 1), bool)):

        def f(*a, where=where):
            return loss.losses(*a, where=where).sum()

        assert f(*args) == 0
        for gradient in jax.grad(f, loss.floats)(*args):
            np.testing.assert_array_equal(gradient, 0)
        np.testing.assert_array_equal(jax.hessian(f)(*args), 0)


def test_label_of_a_masked_class_is_a_bad_label():
    for f in (
        jaxloss.softmax_cross_entropy_with_integer_labels,
        jaxloss.negative_log_likelihood,
    ):
        where = jnp.array([[True, False, True], [True, True, True]])
        losses = f(jnp.zeros((2, 3)), jnp.array([1, 1]), where=where)
        assert np.isnan(losses[0])
        assert np.isfinite(losses[1])


IGNORING = {
    "cross_entropy": F.cross_entropy,
    "cross_entropy_smoothed": F.cross_entropy,
    "nll": F.nll_loss,
}


@pytest.mark.parametrize("ignore_index", [-100, 2])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("name", IGNORING)
def test_ignored_is_deleted(name, reduction, ignore_index):
    loss, f = BY_NAME[name], IGNORING[name]
    x, y = loss.inputs(seed=3)
    y = jnp.where(y == 2, 0, y)
    bad_x, bad_y = jnp.where(KEPT[:, None], x, jnp.nan), jnp.where(KEPT, y, ignore_index)
    options = {**loss.torch_options, "reduction": reduction, "ignore_index": ignore_index}

    def total(x, y):
        return f(x, y, **options).sum()

    np.testing.assert_allclose(total(bad_x, bad_y), total(x[KEPT], y[KEPT]), rtol=1e-6)
    gradient = np.asarray(jax.grad(total)(bad_x, bad_y))
    np.testing.assert_array_equal(gradient[~KEPT], 0)
    wanted = jax.grad(total)(x[KEPT], y[KEPT])
    np.testing.assert_allclose(gradient[KEPT], wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("f", [F.cross_entropy, F.nll_loss], ids=lambda f: f.__name__)
@pytest.mark.parametrize("weight", [None, np.zeros(3, np.float32)], ids=["ignored", "weight 0"])
def test_mean_of_nothing_is_nan_with_gradient_0(f, weight):
    y = jnp.array([-100, -100]) if weight is None else jnp.array([0, 1])
    x = jnp.ones((2, 3))
    assert np.isnan(f(x, y, weight))
    np.testing.assert_array_equal(jax.grad(f)(x, y, weight), 0)
    assert f(x, y, weight, reduction="sum") == 0


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_empty_batch(reduction):
    for loss in ROWWISE:
        if loss.torch and loss.torch not in UNREDUCED:
            args = tuple(a[:0] for a in loss.inputs())
            value = loss.functional(*args, reduction=reduction)
            assert np.isnan(value) if reduction == "mean" else value == 0
        assert loss.losses(*(a[:0] for a in loss.inputs())).size == 0
    assert jaxloss.reduce(jnp.zeros(0)) == 0
