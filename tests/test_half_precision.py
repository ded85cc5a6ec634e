"""Half precision is storage: float32 losses, gradients rounded once, means that count right."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import LOSSES, losses_and_gradients
from hlo import lowered

import jaxloss
from jaxloss import functional as F

HALVES = [jnp.bfloat16, jnp.float16]
# By default it rounds before its products; others with products do as all of JAX is told.
EXACT = [
    dataclasses.replace(loss, options={**loss.options, "precision": "highest"})
    if loss.core == "linear_softmax_cross_entropy"
    else loss
    for loss in LOSSES
]
# Where the distance is the user's own function, so is its precision.
OWN = [loss for loss in EXACT if loss.name != "triplet_with_distance"]
# Which half it is matters only to losses that leave it as it is for a while; other rows take turns.
ROWS = [
    (loss, half)
    for i, loss in enumerate(OWN)
    for half in HALVES
    if loss.labels or loss.mixes or not loss.rowwise or half == HALVES[i % 2]
]


def widened(args):
    return tuple(np.asarray(a, np.float32) if a.dtype.itemsize == 2 else a for a in args)


@functools.cache
def program(loss, doors):
    """The losses through these doors, and the core's gradients by each of the row's floats."""

    def run(args):
        losses, gradients = losses_and_gradients(loss, args)
        return [losses, *(loss.doors()[door](*args) for door in doors)], gradients

    return jax.jit(run)


@pytest.mark.parametrize(("loss", "half"), ROWS, ids=[f"{x}-{h.__name__}" for x, h in ROWS])
def test_halves_give_float32_losses_and_its_gradients_rounded(loss, half):
    args = loss.inputs(half, seed=1)
    # What torch's door to ctc is given `as_torch` has widened.
    others = tuple(door for door in loss.doors() if door != "core" and loss.name != "ctc")
    with jax.default_matmul_precision("highest"):
        losses, gradients = program(loss, others)(args)
        (wanted,), references = program(loss, ())(widened(args))
    for mine in losses:
        assert mine.dtype == jnp.float32
        np.testing.assert_allclose(mine, wanted, rtol=1e-6, atol=1e-7)
    for mine, reference in zip(gradients, references, strict=True):
        assert mine.dtype == half
        rounded = np.asarray(reference).astype(half)
        ulp = np.spacing(np.abs(rounded).astype(np.float32))
        ulp = np.maximum(ulp * 2.0 ** (23 - jnp.finfo(half).nmant), float(jnp.finfo(half).tiny))
        error = np.abs(np.asarray(mine, np.float32) - np.asarray(reference))
        assert np.all(error <= ulp)


def test_mean_of_many_float16_rows():
    # Summed in float16 this stops at 2048, or overflows at 65504.
    x = jnp.ones(70_000, jnp.float16)
    assert F.l1_loss(x, jnp.zeros_like(x)) == 1
    assert F.mse_loss(2 * x, jnp.zeros_like(x)) == 4
    assert jaxloss.reduce(x) == 1
    assert jaxloss.reduce(x, weights=x) == 1
    logits = jnp.zeros((70_000, 2), jnp.float16)
    np.testing.assert_allclose(
        F.cross_entropy(logits, jnp.zeros(70_000, jnp.int32)), np.log(2), rtol=1e-6
    )


def test_mixed_precision_needs_no_leave():
    # Strict promotion is on: only the explicit widening makes these meet.
    logits = jnp.zeros((2, 3), jnp.bfloat16)
    labels = jnp.full((2, 3), 1 / 3, jnp.float32)
    assert jaxloss.softmax_cross_entropy(logits, labels).dtype == jnp.float32
    weight = np.ones(3, np.float64)
    assert F.cross_entropy(logits, jnp.array([0, 1]), weight).dtype == jnp.float32
    assert F.l1_loss(logits, jnp.zeros((2, 3), jnp.float16)).dtype == jnp.float32


def test_weights_follow_the_input(x64):
    logits = jnp.zeros((2, 3), jnp.float32)
    weight = jnp.ones(3, jnp.float64)
    assert F.cross_entropy(logits, jnp.array([0, 1]), weight).dtype == jnp.float32
    assert F.huber_loss(logits, logits, delta=np.float64(1)).dtype == jnp.float32
    assert F.l1_loss(logits, logits, weight=jnp.ones((2, 3))).dtype == jnp.float32


def gathered(f, *args):
    """The dtypes of what is gathered from."""
    text = lowered(jax.value_and_grad(f), *args).as_text()
    return re.findall(r'"?stablehlo\.gather"?.*: \(tensor<(?:\d+x)*(\w+)>', text)


@pytest.mark.parametrize("half", HALVES, ids=lambda h: h.__name__)
@pytest.mark.parametrize(
    "loss",
    [
        F.cross_entropy,
        lambda x, y: F.cross_entropy(x, y, jnp.ones(16), label_smoothing=0.1),
        lambda x, y: jaxloss.softmax_cross_entropy_with_integer_labels(
            x, y, where=jnp.ones((1, 16), bool), z_loss=0.1
        ).sum(),
    ],
    ids=["plain", "weighted and smoothed", "masked"],
)
def test_no_widened_logits_are_stored_to_be_gathered_from(loss, half):
    x, y = jnp.zeros((64, 16), half), jnp.zeros(64, int)
    kind = {jnp.bfloat16: "bf16", jnp.float16: "f16"}[half]
    found = gathered(loss, x, y)
    assert found
    assert {*found} == {kind}
    assert {*gathered(loss, x.astype(jnp.float32), y)} == {"f32"}
