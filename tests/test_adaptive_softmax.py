"""Adaptive softmax: torch's parameters and numbers, any mix of clusters in one program."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import export
from jax.experimental import checkify

import jaxloss.linen
import jaxloss.nnx

FEATURES, CLASSES, CUTOFFS = 8, 20, (4, 9, 14)
RNG = np.random.default_rng(0)
HEAD, HEAD_BIAS = RNG.normal(size=(7, FEATURES)), RNG.normal(size=7)
TAIL = [
    (RNG.normal(size=(features, FEATURES)), RNG.normal(size=(classes, features)))
    for features, classes in ((4, 5), (2, 5), (1, 6))
]
INPUTS, LABELS = RNG.normal(size=(9, FEATURES)), np.array([0, 3, 4, 8, 9, 13, 14, 19, 0])


def log_softmax(logits):
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def exact(inputs, bias):
    """All log probabilities, class by class in float64."""
    rows = []
    for x in inputs:
        head = log_softmax(HEAD @ x + (HEAD_BIAS if bias else 0))
        row = list(head[: CUTOFFS[0]])
        for cluster, (projection, weights) in enumerate(TAIL):
            row.extend(head[CUTOFFS[0] + cluster] + log_softmax(weights @ (projection @ x)))
        rows.append(row)
    return np.array(rows)


def parameters(dtype=jnp.float32, bias=True):
    given = {"head": HEAD, "tail": TAIL} | ({"head_bias": HEAD_BIAS} if bias else {})
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), given)


def losses(given, inputs, labels):
    return jaxloss.adaptive_softmax_cross_entropy(inputs, labels=labels, **given)


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_formula(bias, x64):
    given, inputs = parameters(jnp.float64, bias), jnp.asarray(INPUTS)
    wanted = exact(INPUTS, bias)
    found = jaxloss.adaptive_log_softmax(inputs, **given)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, rtol=1e-12)
    own = -wanted[range(9), LABELS]
    np.testing.assert_allclose(losses(given, inputs, LABELS), own, rtol=1e-12)

    def through_all(given, inputs):
        rows = jaxloss.adaptive_log_softmax(inputs, **given)
        return -jnp.sum(rows * jax.nn.one_hot(LABELS, CLASSES, dtype=rows.dtype))

    mine = jax.grad(lambda given, x: losses(given, x, LABELS).sum(), (0, 1))(given, inputs)
    reference = jax.grad(through_all, (0, 1))(given, inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), mine, reference)


def test_precisions_and_leading_dimensions(x64):
    wanted = -exact(INPUTS, True)[range(9), LABELS]
    single = losses(parameters(), jnp.asarray(INPUTS, jnp.float32), LABELS)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, wanted, rtol=1e-5)
    half = losses(parameters(jnp.bfloat16), jnp.asarray(INPUTS, jnp.bfloat16), LABELS)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, wanted, rtol=0.1, atol=0.1)
    given = parameters(jnp.float64)
    cube = losses(given, INPUTS.reshape(3, 3, -1), LABELS.reshape(3, 3))
    np.testing.assert_allclose(cube, wanted.reshape(3, 3), rtol=1e-12)
    np.testing.assert_allclose(losses(given, INPUTS[4], LABELS[4]), wanted[4], rtol=1e-12)
    rows = jaxloss.adaptive_log_softmax(INPUTS.reshape(3, 3, -1), **given)
    np.testing.assert_allclose(rows, exact(INPUTS, True).reshape(3, 3, -1), rtol=1e-12)


def test_confident_prediction_keeps_its_digits():
    head = jnp.array([[17.5], [0.0], [-100.0]])
    tail = [(jnp.ones((1, 1)), jnp.array([[17.5], [0.0]]))]
    loss = jaxloss.adaptive_softmax_cross_entropy(jnp.ones(1), head, tail, jnp.int32(0))
    np.testing.assert_allclose(loss, 2.510999e-8, rtol=1e-6)
    flipped = jaxloss.adaptive_softmax_cross_entropy(jnp.ones(1), head[::-1], tail, jnp.int32(2))
    np.testing.assert_allclose(flipped, 2 * 2.510999e-8, rtol=1e-6)


def test_every_derivative(x64):
    given, inputs = parameters(jnp.float64), jnp.asarray(INPUTS[2:4])
    labels = LABELS[2:4]

    def f(x):
        return losses(given, x, labels).sum()

    steps = 1e-6 * np.eye(inputs.size).reshape(-1, *inputs.shape)
    slopes = [(jax.grad(f)(inputs + d) - jax.grad(f)(inputs - d)) / 2e-6 for d in steps]
    wanted = np.stack(slopes).reshape(inputs.shape * 2)
    np.testing.assert_allclose(jax.hessian(f)(inputs), wanted, atol=1e-8)
    np.testing.assert_allclose(jax.jacrev(jax.jacrev(f))(inputs), wanted, atol=1e-8)
    each = jax.vmap(jax.grad(lambda x, y: losses(given, x, y)))(inputs, labels)
    np.testing.assert_allclose(each, jax.grad(f)(inputs), rtol=1e-10)


@pytest.mark.parametrize("bad", [-1, CLASSES, 2**31 - 1])
def test_bad_label_is_nan_in_its_example_alone(bad):
    labels, inputs = LABELS.copy(), jnp.asarray(INPUTS, jnp.float32)
    labels[5] = bad
    only = np.arange(9) == 5
    np.testing.assert_array_equal(np.isnan(losses(parameters(), inputs, labels)), only)
    gradient = jax.grad(lambda x: losses(parameters(), x, labels).sum())(inputs)
    np.testing.assert_array_equal(np.isnan(gradient).all(-1), only)
    np.testing.assert_array_equal(np.isnan(gradient).any(-1), only)
    error, _ = checkify.checkify(losses)(parameters(), inputs, labels)
    with pytest.raises(checkify.JaxRuntimeError, match=r"`labels` must be a class in \[0, 20\)"):
        error.throw()


def test_one_program_for_any_mix_of_clusters():
    traces = []

    @jax.jit
    def f(inputs, labels):
        traces.append(labels)
        return losses(parameters(), inputs, labels)

    inputs = jnp.asarray(INPUTS, jnp.float32)
    for labels in (LABELS, np.zeros(9, int), np.full(9, 19), np.array([*range(8), 19])):
        wanted = -exact(INPUTS, True)[range(9), labels]
        np.testing.assert_allclose(f(inputs, labels), wanted, rtol=1e-4)
    assert len(traces) == 1


def test_every_platform_and_no_scatter():
    def f(given, inputs):
        return losses(given, inputs, LABELS).sum() + jnp.sum(
            jaxloss.adaptive_log_softmax(inputs, **given)
        )

    args = parameters(), jnp.asarray(INPUTS, jnp.float32)
    platforms = ["cpu", "cuda", "tpu", "rocm"]
    lowered = export.export(jax.jit(jax.value_and_grad(f)), platforms=platforms)(*args)
    assert set(lowered.platforms) == set(platforms)
    program = (
        jax.jit(jax.grad(lambda given, x: losses(given, x, LABELS).sum())).lower(*args).compile()
    )
    assert not re.search(r"\bscatter\(", str(program.as_text()))


def nnx_module(bias):
    """The NNX module with the parameters above, under torch's names."""
    module = jaxloss.nnx.AdaptiveLogSoftmaxWithLoss(
        FEATURES, CLASSES, CUTOFFS, 2.0, head_bias=bias, rngs=nnx.Rngs(0)
    )
    module.head.weight[...] = jnp.asarray(HEAD, jnp.float32)
    if module.head.bias is not None:
        module.head.bias[...] = jnp.asarray(HEAD_BIAS, jnp.float32)
    for layers, pair in zip(module.tail, TAIL, strict=True):
        for layer, weights in zip(layers, pair, strict=True):
            layer.weight[...] = jnp.asarray(weights, jnp.float32)
    return module


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_modules(bias):
    inputs = jnp.asarray(INPUTS, jnp.float32)
    wanted = exact(INPUTS, bias)
    mine = nnx_module(bias)
    twin = jaxloss.linen.AdaptiveLogSoftmaxWithLoss(FEATURES, CLASSES, [*CUTOFFS], 2.0, bias)
    variables = twin.init(jax.random.key(0), inputs, LABELS)
    drawn = jax.tree.leaves(variables)
    assert all(0 < np.abs(x).max() <= x.shape[-1] ** -0.5 for x in drawn if x.ndim == 2)
    layers = {
        "head": mine.head,
        **{f"tail_{i}_{j}": mine.tail[i][j] for i in range(3) for j in range(2)},
    }
    loaded = {
        name: {"weight": layer.weight[...]}
        | ({} if layer.bias is None else {"bias": layer.bias[...]})
        for name, layer in layers.items()
    }
    assert jax.tree.map(jnp.shape, variables) == {"params": jax.tree.map(jnp.shape, loaded)}

    def call(*args, method=None) -> Any:
        return twin.apply({"params": loaded}, *args, method=method)

    for output, loss in (mine(inputs, LABELS), call(inputs, LABELS)):
        np.testing.assert_allclose(output, wanted[range(9), LABELS], rtol=1e-5)
        np.testing.assert_allclose(loss, -wanted[range(9), LABELS].mean(), rtol=1e-5)
    for rows in (mine.log_prob(inputs), call(inputs, method="log_prob")):
        np.testing.assert_allclose(rows, wanted, rtol=1e-4)
    for best in (mine.predict(inputs), call(inputs, method="predict")):
        np.testing.assert_array_equal(best, wanted.argmax(-1))
    alone = mine(inputs[6], LABELS[6])
    assert alone.output.shape == alone.loss.shape == ()
    np.testing.assert_allclose(alone.output, wanted[6, LABELS[6]], rtol=1e-5)
    assert hash(twin) == hash(twin.clone())


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


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_live_torch(bias):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(FEATURES, CLASSES, CUTOFFS, 2.0, head_bias=bias)
    given = {"head.weight": HEAD, "head.bias": HEAD_BIAS} | {
        f"tail.{i}.{j}.weight": TAIL[i][j] for i in range(3) for j in range(2)
    }
    state = {name: torch.tensor(given[name]).float() for name in theirs.state_dict()}
    theirs.load_state_dict(state)
    inputs = torch.tensor(INPUTS).float().requires_grad_()
    output, loss = theirs(inputs, torch.tensor(LABELS))
    loss.backward()
    mine = nnx_module(bias)
    x = jnp.asarray(INPUTS, jnp.float32)
    np.testing.assert_allclose(mine(x, LABELS).output, output.detach(), rtol=1e-6, atol=1e-6)
    gradient = nnx.grad(lambda m: m(x, LABELS).loss)(mine)
    np.testing.assert_allclose(gradient.head.weight[...], theirs.head.weight.grad, atol=1e-6)
    for i, layers in enumerate(theirs.tail):
        for j, layer in enumerate(layers):
            found = gradient.tail[i][j].weight[...]
            np.testing.assert_allclose(found, layer.weight.grad, atol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: mine(x, LABELS).loss)(x), inputs.grad, atol=1e-6)


@pytest.mark.parametrize("door", [jaxloss.nnx, jaxloss.linen], ids=["nnx", "linen"])
def test_what_is_refused(door):
    rngs = {"rngs": nnx.Rngs(0)} if door is jaxloss.nnx else {}
    for cutoffs in ([], [3, 2], [0, 4], [5, CLASSES], [5, 5], [2.5]):
        words = r"AdaptiveLogSoftmaxWithLoss: `cutoffs` must be increasing integers in \[1, 19\]"
        with pytest.raises(ValueError, match=words):
            door.AdaptiveLogSoftmaxWithLoss(FEATURES, CLASSES, cutoffs, **rngs)
    words = (
        "AdaptiveLogSoftmaxWithLoss: `div_value` must leave cluster 1 at least one of 8 features"
    )
    with pytest.raises(ValueError, match=words):
        door.AdaptiveLogSoftmaxWithLoss(FEATURES, CLASSES, CUTOFFS, **rngs)


def test_wrong_arguments_are_named():
    given, inputs = parameters(), jnp.asarray(INPUTS, jnp.float32)
    module = nnx_module(True)
    for call, error, words in (
        (lambda: losses(given, inputs, LABELS[:3]), ValueError, "`labels` must have shape (9,)"),
        (
            lambda: losses(given, inputs, INPUTS[:, 0]),
            TypeError,
            "`labels` must be an array of int",
        ),
        (
            lambda: losses(given, inputs[:, :3], LABELS),
            ValueError,
            "`head` must have shape (S + 3, 3)",
        ),
        (
            lambda: losses(given | {"head_bias": jnp.ones(3)}, inputs, LABELS),
            ValueError,
            "`head_bias` must have shape (7,), got (3,)",
        ),
        (
            lambda: losses(given | {"tail": [(HEAD,)]}, inputs, LABELS),
            ValueError,
            "`tail` must hold a projection and weights for each cluster, got 1 arrays",
        ),
        (
            lambda: losses(given | {"tail": [(HEAD, HEAD)]}, inputs, LABELS),
            ValueError,
            "adaptive_softmax_cross_entropy: `tail[0][1]` must have shape (C1, 7), got (7, 8)",
        ),
        (
            lambda: module(inputs[:, :3], LABELS),
            ValueError,
            "AdaptiveLogSoftmaxWithLoss: `input_` must have shape (8,) or (N, 8), got (9, 3)",
        ),
    ):
        with pytest.raises(error, match=re.escape(words)):
            call()
