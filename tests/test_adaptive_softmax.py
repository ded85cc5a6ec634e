"""Adaptive softmax: its formula, its derivatives, absent examples and wrong calls."""

# pyright: reportArgumentType=false
# Wrong calls are a subject here.

import re
from typing import Any

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jaxloss

FEATURES, CLASSES, CUTOFFS = 8, 20, (4, 9)
RNG = np.random.default_rng(0)
HEAD, HEAD_BIAS = RNG.normal(size=(6, FEATURES)), RNG.normal(size=6)
TAIL = [
    (RNG.normal(size=(features, FEATURES)), RNG.normal(size=(classes, features)))
    for features, classes in ((4, 5), (2, 11))
]
# One example of the last cluster, number 4.
INPUTS, LABELS = RNG.normal(size=(8, FEATURES)), np.array([0, 3, 4, 8, 19, 5, 2, 0])
EXAMPLES = np.arange(8)
BIAS = pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])


def log_softmax(logits):
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def exact(inputs, bias=True, head=HEAD, head_bias=HEAD_BIAS, tail=TAIL):
    """All log probabilities, class by class in float64."""
    rows = []
    for x in inputs:
        log_probs = log_softmax(head @ x + (head_bias if bias else 0))
        row = list(log_probs[: CUTOFFS[0]])
        for cluster, (projection, weights) in enumerate(tail):
            row.extend(log_probs[CUTOFFS[0] + cluster] + log_softmax(weights @ (projection @ x)))
        rows.append(row)
    return np.array(rows)


def parameters(dtype: Any = jnp.float32, bias=True):
    given = {"head": HEAD, "tail": TAIL} | ({"head_bias": HEAD_BIAS} if bias else {})
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), given)


def losses(given, inputs, labels, **options):
    return jaxloss.adaptive_softmax_cross_entropy(inputs, labels=labels, **given, **options)


def log_probs(given, inputs):
    return jaxloss.adaptive_log_softmax(inputs, **given)


@jax.jit
def gradients(given, inputs, labels, where=None):
    """Those of the sum of losses."""
    f = jax.grad(lambda given, inputs: losses(given, inputs, labels, where=where).sum(), (0, 1))
    return f(given, inputs)


def compare(mine, reference, tolerance):
    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())

    jax.tree.map(close, mine, reference)


def test_formula(x64):
    given, inputs = parameters(jnp.float64), jnp.asarray(INPUTS)
    wanted = exact(INPUTS)
    found = log_probs(given, inputs)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, rtol=1e-12)
    own = losses(given, inputs, LABELS)
    np.testing.assert_allclose(own, -wanted[EXAMPLES, LABELS], rtol=1e-12)

    # Differences of the formula in every parameter and input.
    leaves, tree = jax.tree.flatten(jax.tree.map(np.array, (parameters(np.float64), INPUTS)))

    def moved(leaf, position, step):
        leaves[leaf][position] += step
        given, inputs = jax.tree.unflatten(tree, leaves)
        value = -exact(inputs, **given)[EXAMPLES, LABELS].sum()
        leaves[leaf][position] -= step
        return value

    slopes = [np.zeros_like(x) for x in leaves]
    for leaf, slope in enumerate(slopes):
        for position in np.ndindex(slope.shape):
            ahead, behind = (moved(leaf, position, step) for step in (1e-5, -1e-5))
            slope[position] = (ahead - behind) / 2e-5
    compare(gradients(given, inputs, LABELS), jax.tree.unflatten(tree, slopes), 1e-8)


def test_precisions(x64):
    wanted = -exact(INPUTS)[EXAMPLES, LABELS]
    given, inputs = parameters(), jnp.asarray(INPUTS, jnp.float32)
    for found in (losses(given, inputs, LABELS), log_probs(given, inputs)):
        assert found.dtype == jnp.float32
    np.testing.assert_allclose(losses(given, inputs, LABELS), wanted, rtol=1e-6)
    halves = parameters(jnp.bfloat16), jnp.asarray(INPUTS, jnp.bfloat16)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), halves)
    found = losses(halves[0], halves[1], LABELS)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, losses(wide[0], wide[1], LABELS), rtol=1e-6)
    mine, reference = gradients(*halves, LABELS), gradients(*wide, LABELS)
    assert {x.dtype for x in jax.tree.leaves(mine)} == {jnp.dtype(jnp.bfloat16)}
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(reference), strict=True):
        error = np.linalg.norm(a.astype(jnp.float32) - b)
        assert error <= 4e-3 * np.linalg.norm(b)


def test_half_operands_go_into_the_products_as_they_are():
    halves = parameters(jnp.bfloat16), jnp.asarray(INPUTS, jnp.bfloat16)
    found = hlo.products(lambda given, inputs: losses(given, inputs, LABELS), *halves)
    # The head and each projection; what a projection gives is float32.
    assert found.count(("bf16", "bf16", "f32")) == 1 + len(TAIL)
    assert {*found} == {("bf16", "bf16", "f32"), ("f32", "f32", "f32")}
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), halves)
    np.testing.assert_allclose(log_probs(*halves), log_probs(*wide), rtol=1e-6)


def test_leading_dimensions(x64):
    given, wanted = parameters(jnp.float64), exact(INPUTS)
    own = -wanted[EXAMPLES, LABELS]
    cube, labels = jnp.asarray(INPUTS).reshape(2, 4, -1), LABELS.reshape(2, 4)
    np.testing.assert_allclose(losses(given, cube, labels), own.reshape(2, 4), rtol=1e-12)
    np.testing.assert_allclose(log_probs(given, cube), wanted.reshape(2, 4, -1), rtol=1e-12)
    np.testing.assert_allclose(losses(given, INPUTS[4], LABELS[4]), own[4], rtol=1e-12)
    np.testing.assert_allclose(log_probs(given, INPUTS[4]), wanted[4], rtol=1e-12)
    assert losses(given, INPUTS[:0], LABELS[:0]).shape == (0,)


def test_confident_prediction_keeps_its_digits():
    small = 2.510999e-8
    head, tail = jnp.array([[17.5], [0.0], [-100.0]]), jnp.array([[17.5], [0.0]])
    for kernel, label, wanted in ((head, 0, small), (head[::-1], 2, 2 * small)):
        given = {"head": kernel, "tail": [(jnp.ones((1, 1)), tail)]}
        loss = losses(given, jnp.ones(1), jnp.int32(label))
        np.testing.assert_allclose(loss, wanted, rtol=1e-6)
        np.testing.assert_allclose(-log_probs(given, jnp.ones(1))[label], wanted, rtol=1e-6)
        mine, _ = gradients(given, jnp.ones(1), label)
        other = jax.grad(lambda given: -log_probs(given, jnp.ones(1))[label])(given)  # noqa: B023
        certain = list(kernel).index(17.5)
        for gradient in (mine, other):
            np.testing.assert_allclose(gradient["head"][certain], -small, rtol=1e-6)
            np.testing.assert_allclose(gradient["head"][2 - certain or 1], small, atol=2 * small)
    compare(mine, other, 1e-6)


def test_every_derivative(x64):
    given, labels = parameters(jnp.float64), LABELS[2:5]
    inputs, direction = jnp.asarray(INPUTS[2:5]), jnp.asarray(INPUTS[:3])

    def of_losses(x):
        return losses(given, x, labels).sum()

    def of_log_probs(x):
        return log_probs(given, x)[np.arange(3), labels].sum() * -1.0

    def along(x):
        return jax.jvp(of_losses, (x,), (direction,))[1]

    @jax.jit
    def everything(x):
        reverse = jax.jacrev(jax.grad(of_losses))(x)
        return along(x), jax.grad(along)(x), reverse, jax.hessian(of_log_probs)(x)

    slope, product, reverse, other = everything(inputs)
    compare(other, reverse, 1e-11)
    np.testing.assert_allclose(product, np.einsum("ijkl,kl", reverse, direction), atol=1e-12)
    gradient = jax.jit(jax.grad(of_losses))
    step = 1e-5
    ahead, behind = gradient(inputs + step * direction), gradient(inputs - step * direction)
    np.testing.assert_allclose(product, (ahead - behind) / (2 * step), atol=1e-8)
    np.testing.assert_allclose(slope, jnp.sum(gradient(inputs) * direction), rtol=1e-12)
    each = jax.jit(jax.vmap(jax.grad(lambda x, y: losses(given, x, y))))(inputs, labels)
    np.testing.assert_allclose(each, gradient(inputs), rtol=1e-10)


@pytest.mark.parametrize("bad", [-1, CLASSES, 2**31 - 1, -(2**31)])
def test_bad_label_is_nan_in_its_example_alone(bad):
    given, inputs = parameters(), jnp.asarray(INPUTS, jnp.float32)
    labels, only = LABELS.copy(), EXAMPLES == 5
    labels[5] = bad
    np.testing.assert_array_equal(np.isnan(losses(given, inputs, labels)), only)
    of_parameters, of_inputs = gradients(given, inputs, labels)
    np.testing.assert_array_equal(np.isnan(of_inputs).all(-1), only)
    np.testing.assert_array_equal(np.isnan(of_inputs).any(-1), only)
    assert not any(np.isnan(x).any() for x in jax.tree.leaves(of_parameters["tail"]))


def check_that_checkify_names(f, words):
    """A label that is no class, where every other is fine."""
    checked = jax.jit(checkify.checkify(f))
    checked(LABELS)[0].throw()
    for bad in (-1, CLASSES):
        error, _ = checked(np.where(EXAMPLES == 5, bad, LABELS))
        with pytest.raises(checkify.JaxRuntimeError, match=words + r"must be a class in \[0, 20\)"):
            error.throw()


def test_bad_label_is_named_by_checkify():
    inputs = jnp.asarray(INPUTS, jnp.float32)
    words = "adaptive_softmax_cross_entropy: `labels` "
    check_that_checkify_names(lambda y: losses(parameters(), inputs, y), words)


def test_clusters_do_not_see_the_examples_of_others():
    given, inputs = parameters(), jnp.asarray(INPUTS, jnp.float32)
    for bad in (np.nan, np.inf):
        of_parameters, of_inputs = gradients(given, inputs.at[4].set(bad), LABELS)
        np.testing.assert_array_equal(np.isnan(of_inputs).any(-1), EXAMPLES == 4)
        seen = [[bool(np.isnan(x).any()) for x in pair] for pair in of_parameters["tail"]]
        assert seen == [[False, False], [True, True]]
    with_all, _ = gradients(given, inputs, LABELS)
    without, _ = gradients(given, inputs, np.where(EXAMPLES == 4, 0, LABELS))
    assert np.any(with_all["tail"][1][0])
    compare(with_all["tail"][0], without["tail"][0], 1e-6)
    np.testing.assert_array_equal(without["tail"][1][0], 0)
    np.testing.assert_array_equal(without["tail"][1][1], 0)


def test_absent_examples_may_hold_anything():
    given, inputs = parameters(), jnp.asarray(INPUTS, jnp.float32)
    absent = (EXAMPLES == 4) | (EXAMPLES == 0)
    labels = np.where(EXAMPLES == 0, -7, LABELS)  # That of example 4 would be a class.
    dirty = jnp.where(absent[:, None], np.nan, inputs)
    found = losses(given, dirty, labels, where=~absent[:, None])
    np.testing.assert_array_equal(found[absent], 0)
    wanted = losses(given, inputs[~absent], LABELS[~absent])
    np.testing.assert_allclose(found[~absent], wanted, rtol=1e-6)
    of_parameters, of_inputs = gradients(given, dirty, labels, ~absent[:, None])
    np.testing.assert_array_equal(of_inputs[absent], 0)
    compare(of_parameters, gradients(given, inputs[~absent], LABELS[~absent])[0], 2e-6)
    error, _ = checkify.checkify(losses)(given, dirty, labels, where=~absent[:, None])
    error.throw()


def test_wrong_arguments_are_named():
    given, inputs = parameters(), jnp.asarray(INPUTS, jnp.float32)
    core = "adaptive_softmax_cross_entropy: "
    wrong = inputs[:, :3]
    for call, error, words in (
        (
            lambda: losses(given, inputs, LABELS[:3]),
            ValueError,
            core + "`labels` must have shape (8,), got (3,)",
        ),
        (
            lambda: losses(given, inputs, INPUTS[:, 0]),
            TypeError,
            core + "`labels` must be an array of integers, got float",
        ),
        (
            lambda: losses(given, wrong, LABELS),
            ValueError,
            core + "`head` must have shape (S + 2, 3), got (6, 8)",
        ),
        (
            lambda: losses(given | {"head_bias": jnp.ones(3)}, inputs, LABELS),
            ValueError,
            core + "`head_bias` must have shape (6,), got (3,)",
        ),
        (
            lambda: losses(given, inputs, LABELS, where=inputs > 0),
            ValueError,
            core + "`where` must have size 1 along the features, got (8, 8)",
        ),
        (
            lambda: losses(given | {"tail": [(HEAD,)]}, inputs, LABELS),
            ValueError,
            core + "`tail` must hold a projection and weights for each cluster, got 1 arrays",
        ),
        (
            lambda: losses(given | {"tail": [(HEAD, HEAD)]}, inputs, LABELS),
            ValueError,
            core + "`tail[0][1]` must have shape (C1, 6), got (6, 8)",
        ),
        (
            lambda: losses(given | {"tail": [(HEAD, HEAD[:0, :6])]}, inputs, LABELS),
            ValueError,
            core + "`tail[0][1]` must have shape (C1, 6), got (0, 6)",
        ),
        (
            lambda: losses(given | {"tail": [(None, HEAD)]}, inputs, LABELS),
            TypeError,
            core + "`tail[0][0]` must be an array, got NoneType",
        ),
        (
            lambda: log_probs(given, jnp.float32(1)),
            ValueError,
            "adaptive_log_softmax: `inputs` must have shape (..., D), got ()",
        ),
    ):
        with pytest.raises(error, match=re.escape(words)):
            call()
