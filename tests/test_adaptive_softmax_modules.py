"""Adaptive softmax as a module: torch's parameters and numbers, in NNX and Linen."""

# pyright: reportArgumentType=false
# Wrong calls are a subject here.

import importlib
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from test_adaptive_softmax import (
    BIAS,
    CLASSES,
    CUTOFFS,
    EXAMPLES,
    FEATURES,
    HEAD,
    HEAD_BIAS,
    INPUTS,
    LABELS,
    TAIL,
    check_that_checkify_names,
    compare,
    exact,
)

import jaxloss.linen
import jaxloss.nnx

# torch's names of the parameters.
NAMED = {"head.weight": HEAD, "head.bias": HEAD_BIAS} | {
    f"tail.{i}.{j}.weight": TAIL[i][j] for i in range(2) for j in range(2)
}


def nnx_module(bias, dtype: Any = jnp.float32):
    """The NNX module with the parameters above, found under torch's names."""
    module = jaxloss.nnx.AdaptiveLogSoftmaxWithLoss(
        FEATURES, CLASSES, CUTOFFS, 2.0, head_bias=bias, rngs=nnx.Rngs(0)
    )
    state = nnx.state(module, nnx.Param)
    for path, parameter in nnx.to_flat_state(state):
        value = NAMED[".".join(map(str, path))]
        assert parameter.shape == value.shape
        parameter.set_value(jnp.asarray(value, dtype))
    nnx.update(module, state)
    return module


def linen_module(bias):
    """The same in Linen, with its variables."""
    module = jaxloss.linen.AdaptiveLogSoftmaxWithLoss(FEATURES, CLASSES, [*CUTOFFS], 2.0, bias)
    tree: dict[str, dict[str, jax.Array]] = {}
    for name, value in NAMED.items():
        layer, own = name.rsplit(".", 1)
        if bias or own != "bias":
            tree.setdefault(layer.replace(".", "_"), {})[own] = jnp.asarray(value, jnp.float32)
    return module, {"params": tree}


@BIAS
def test_modules(bias):
    inputs, wanted = jnp.asarray(INPUTS, jnp.float32), exact(INPUTS, bias)
    mine, (twin, variables) = nnx_module(bias), linen_module(bias)
    own = wanted[EXAMPLES, LABELS]

    def call(*args, method=None) -> Any:
        return twin.apply(variables, *args, method=method)

    for found in (mine(inputs, LABELS), call(inputs, LABELS)):
        assert found._fields == ("output", "loss")
        np.testing.assert_allclose(found.output, own, rtol=1e-6)
        np.testing.assert_allclose(found.loss, -own.mean(), rtol=1e-6)
    for rows in (mine.log_prob(inputs), call(inputs, method="log_prob")):
        np.testing.assert_allclose(rows, wanted, rtol=2e-6)
    for best in (mine.predict(inputs), call(inputs, method="predict")):
        np.testing.assert_array_equal(best, wanted.argmax(-1))
    for alone in (mine(inputs[6], LABELS[6]), call(inputs[6], LABELS[6])):
        assert alone.output.shape == alone.loss.shape == ()
        np.testing.assert_allclose(alone.output, own[6], rtol=1e-6)
    assert mine.predict(inputs[6]) == wanted[6].argmax()
    graph, state = nnx.split(mine)
    np.testing.assert_array_equal(
        nnx.merge(graph, state)(inputs, LABELS).output, mine(inputs, LABELS).output
    )


def test_bad_label_is_named_by_checkify():
    inputs, module = jnp.asarray(INPUTS, jnp.float32), nnx_module(True)
    check_that_checkify_names(lambda y: module(inputs, y), "AdaptiveLogSoftmaxWithLoss: `target_` ")


def test_initial_parameters():
    module, _ = linen_module(True)
    drawn: Any = module.init(jax.random.key(0), INPUTS.astype(np.float32), LABELS)["params"]
    mine = jaxloss.nnx.AdaptiveLogSoftmaxWithLoss(
        FEATURES, CLASSES, CUTOFFS, 2.0, True, rngs=nnx.Rngs(0)
    )
    flat = {".".join(map(str, path)): p[...] for path, p in nnx.to_flat_state(nnx.state(mine))}
    assert flat.keys() == NAMED.keys()
    for name, value in NAMED.items():
        layer, own = name.rsplit(".", 1)
        features = NAMED[layer + ".weight"].shape[1]
        for x in (flat[name], drawn[layer.replace(".", "_")][own]):
            assert x.shape == value.shape
            assert 0.5 < np.abs(x).max() * features**0.5 <= 1
    assert len(jax.tree.leaves(drawn)) == len(jax.tree.leaves(nnx.state(mine, nnx.Param))) == 6


def test_linen_module_hashes_and_lifts():
    module, variables = linen_module(False)
    inputs = jnp.asarray(INPUTS, jnp.float32)
    assert hash(module) == hash(module.clone())
    assert module == jaxloss.linen.AdaptiveLogSoftmaxWithLoss(FEATURES, CLASSES, CUTOFFS, 2.0)
    lifted = nn.jit(jaxloss.linen.AdaptiveLogSoftmaxWithLoss)(FEATURES, CLASSES, CUTOFFS, 2.0)
    wanted = module.apply(variables, inputs, LABELS)
    compare(lifted.apply(variables, inputs, LABELS), wanted, 1e-6)


def test_training_an_nnx_module():
    module = nnx_module(True)
    optimizer = nnx.Optimizer(module, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(module, optimizer, inputs):
        loss, gradient = nnx.value_and_grad(lambda m: m(inputs, LABELS).loss)(module)
        optimizer.update(module, gradient)
        return loss

    values = [step(module, optimizer, jnp.asarray(INPUTS, jnp.float32)) for _ in range(30)]
    assert values[-1] < 0.5 * values[0]


def check_against_torch(kind, tolerance, bias):
    torch = importlib.import_module("torch")
    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(FEATURES, CLASSES, CUTOFFS, 2.0, head_bias=bias)
    theirs = theirs.to(getattr(torch, kind))
    named = {name: torch.tensor(NAMED[name]) for name in theirs.state_dict()}
    theirs.load_state_dict(named)
    inputs = torch.tensor(INPUTS).to(getattr(torch, kind)).requires_grad_()
    output, loss = theirs(inputs, torch.tensor(LABELS))
    loss.backward()
    mine, x = nnx_module(bias, kind), jnp.asarray(INPUTS, kind)
    graph, state = nnx.split(mine)

    @jax.jit
    def answers(state, x):
        def f(state, x):
            found = nnx.merge(graph, state)(x, LABELS)
            return found.loss, found.output

        return jax.value_and_grad(f, (0, 1), has_aux=True)(state, x)

    (value, log_prob), (of_parameters, of_inputs) = answers(state, x)
    assert value.dtype == kind
    np.testing.assert_allclose(log_prob, output.detach(), rtol=tolerance)
    np.testing.assert_allclose(value, loss.detach(), rtol=tolerance)
    found = {".".join(map(str, path)): p[...] for path, p in nnx.to_flat_state(of_parameters)}
    reference = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    assert found.keys() == reference.keys()
    compare((found, of_inputs), (reference, inputs.grad.numpy()), tolerance)
    rows = theirs.log_prob(inputs).detach()
    np.testing.assert_allclose(mine.log_prob(x), rows, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(mine.predict(x), theirs.predict(inputs))


@pytest.mark.parametrize("door", [jaxloss.nnx, jaxloss.linen], ids=["nnx", "linen"])
def test_what_the_constructor_refuses(door):
    rngs = {"rngs": nnx.Rngs(0)} if door is jaxloss.nnx else {}

    def made(cutoffs, div_value=2.0):
        return door.AdaptiveLogSoftmaxWithLoss(FEATURES, CLASSES, cutoffs, div_value, **rngs)

    assert made(np.array(CUTOFFS)).cutoffs == CUTOFFS
    for cutoffs in ([], [3, 2], [0, 4], [-1, 4], [5, CLASSES], [5, 5], [2.5], [2.0], "ab", 5):
        words = f"must be increasing integers in [1, 19], at least one, got {cutoffs}"
        with pytest.raises(
            ValueError, match=re.escape("AdaptiveLogSoftmaxWithLoss: `cutoffs` " + words)
        ):
            made(cutoffs)
    for div_value, words in (
        (4.0, "leave cluster 1 at least one of 8 features, got 4.0"),
        (1e200, r"leave cluster 0 at least one of 8 features, got 1e\+200"),
        (0, "be positive, got 0"),
        (-2.0, "be positive, got -2.0"),
        (np.nan, "be positive, got nan"),
    ):
        with pytest.raises(
            ValueError, match="AdaptiveLogSoftmaxWithLoss: `div_value` must " + words
        ):
            made(CUTOFFS, div_value)


def test_wrong_arguments_are_named():
    inputs, name = jnp.asarray(INPUTS, jnp.float32), "AdaptiveLogSoftmaxWithLoss: "
    module, (twin, variables) = nnx_module(True), linen_module(True)
    wrong = inputs[:, :3]
    for call, error, words in (
        (
            lambda: module(wrong, LABELS),
            ValueError,
            name + "`input_` must have shape (8,) or (N, 8), got (8, 3)",
        ),
        (
            lambda: module(inputs[None], LABELS[None]),
            ValueError,
            name + "`input_` must have shape (8,) or (N, 8), got (1, 8, 8)",
        ),
        (
            lambda: module(inputs.astype(int), LABELS),
            TypeError,
            name + "`input_` must be a floating-point array, got int32",
        ),
        (
            lambda: module(inputs, LABELS[0]),
            ValueError,
            name + "`target_` must have shape (8,), got ()",
        ),
        (
            lambda: twin.apply(variables, inputs, inputs[:, 0]),
            TypeError,
            name + "`target_` must be an array of integers, got float32",
        ),
        (
            lambda: twin.apply(variables, wrong, method="predict"),
            ValueError,
            name + "`input` must have shape (8,) or (N, 8), got (8, 3)",
        ),
    ):
        with pytest.raises(error, match=re.escape(words)):
            call()
