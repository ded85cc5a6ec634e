"""Linear cross entropy: the loss of the logits without the logits, in any blocks."""

# pyright: reportArgumentType=false, reportCallIssue=false
# Options in dictionaries lose their types.

import functools

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import nnx
from jax.experimental import checkify

import jaxloss.linen
import jaxloss.nnx
from jaxloss import functional as F

# 7 examples do not divide into equal blocks, 5 features not into portions of half a block.
N, C, D = 7, 6, 5
CHUNKS = [1, 2, 3, 99, None]
RNG = np.random.default_rng(0)
INPUTS, KERNEL = RNG.normal(size=(N, D)), RNG.normal(size=(C, D))
INDICES, PROBABILITIES = RNG.integers(0, C, N), RNG.dirichlet(np.ones(C), N)
PER_CLASS = {"bias": RNG.normal(size=C), "class_weights": RNG.uniform(size=C)}
NUMBERS = {"label_smoothing": 0.2, "z_loss": 0.05, "softcap": 3.0}


def given(labels, everything):
    """Arguments by name: those that may be differentiated, in float64."""
    floats = {"inputs": INPUTS, "kernel": KERNEL}
    floats |= PER_CLASS | {k: np.asarray(v) for k, v in NUMBERS.items()} if everything else {}
    if labels is PROBABILITIES:
        floats["labels"] = labels
    return {name: jnp.asarray(value) for name, value in floats.items()}


def from_logits(labels, inputs, kernel, bias=None, **options):
    """The same with all logits."""
    logits = inputs @ kernel.T
    logits = logits if bias is None else logits + bias[None]
    if jnp.issubdtype(labels.dtype, jnp.floating):
        return jaxloss.softmax_cross_entropy(logits, labels, **options)
    return jaxloss.softmax_cross_entropy_with_integer_labels(logits, labels, **options)


def value_and_gradients(f, floats):
    """Of losses, by all that floats hold, as one program."""

    @jax.jit
    def run(floats):
        value, pull = jax.vjp(f, floats)
        return value, pull(jnp.asarray(np.random.default_rng(1).normal(size=N)))[0]

    return jax.tree.map(np.asarray, run(floats))


@functools.cache
def wanted_of(soft, everything):
    labels = PROBABILITIES if soft else INDICES
    floats = given(labels, everything)
    return value_and_gradients(
        lambda floats: from_logits(**{"labels": jnp.asarray(labels)} | floats), floats
    )


@pytest.mark.parametrize("everything", [False, True], ids=["plain", "everything"])
@pytest.mark.parametrize("labels", [INDICES, PROBABILITIES], ids=["indices", "probabilities"])
@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_losses_and_all_gradients(chunk_size, labels, everything, x64):
    floats = given(labels, everything)

    def f(floats):
        options = {"labels": jnp.asarray(labels)} | floats
        args = [options.pop(name) for name in ("inputs", "kernel", "labels")]
        return jaxloss.linear_softmax_cross_entropy(*args, chunk_size=chunk_size, **options)

    value, mine = value_and_gradients(f, floats)
    wanted, reference = wanted_of(labels is PROBABILITIES, everything)
    exact = oracle.linear_softmax_cross_entropy(
        **{"labels": labels} | {k: np.asarray(v) for k, v in floats.items()}
    )
    np.testing.assert_allclose(value, exact, rtol=1e-12)
    np.testing.assert_allclose(value, wanted, rtol=1e-12)
    assert mine.keys() == reference.keys() == floats.keys()
    for name in mine:
        np.testing.assert_allclose(mine[name], reference[name], rtol=1e-11, atol=1e-13)


def reduced(labels, **options):
    """The loss through torch's function, that of the logits, and their arguments."""
    labels = jnp.asarray(labels)
    floats = tuple(jnp.asarray(x) for x in (INPUTS, KERNEL, *PER_CLASS.values()))
    smoothing = {"label_smoothing": 0.2}

    def f(inputs, kernel, bias, weight):
        more = {"linear_bias": bias, "weight": weight} | smoothing | options
        return F.linear_cross_entropy(inputs, kernel, labels, **more)

    def g(inputs, kernel, bias, weight):
        more = smoothing | {k: v for k, v in options.items() if k != "chunk_size"}
        return F.cross_entropy(inputs @ kernel.T + bias[None], labels, weight, **more)

    return f, g, floats


@pytest.mark.parametrize("chunk_size", [1, 3, 99])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("labels", [INDICES, PROBABILITIES], ids=["indices", "probabilities"])
def test_reduced_by_torch_function(labels, reduction, chunk_size, x64):
    f, g, floats = reduced(labels, reduction=reduction, chunk_size=chunk_size)
    both = jax.jit(lambda *floats: [jax.value_and_grad(h, range(4))(*floats) for h in (f, g)])
    (value, gradients), (wanted, references) = both(*floats)
    np.testing.assert_allclose(value, wanted, rtol=1e-12)
    for mine, reference in zip(gradients, references, strict=True):
        np.testing.assert_allclose(mine, reference, rtol=1e-11, atol=1e-13)


def test_every_derivative_of_a_mean(x64):
    f, g, floats = reduced(INDICES, chunk_size=3)

    def derivatives(f, *floats):
        along = jax.jvp(f, floats, jax.tree.map(jnp.cos, floats))[1]
        pair = jnp.stack([floats[0], 2 * floats[0]])
        mapped = jax.vmap(jax.grad(f, 1), (0, None, None, None))(pair, *floats[1:])
        return along, jax.hessian(f, 1)(*floats), mapped

    @jax.jit
    def of_both(*floats):
        reverse = jax.jacrev(jax.jacrev(jax.checkpoint(f), 1), 0)(*floats)
        of_logits = jax.jacfwd(jax.grad(g, 1), 0)(*floats)
        return derivatives(f, *floats), derivatives(g, *floats), reverse, of_logits

    found, wanted, reverse, of_logits = of_both(*floats)
    for mine, reference, tolerance in zip(found, wanted, (0, 1e-12, 1e-13), strict=True):
        np.testing.assert_allclose(mine, reference, rtol=1e-11, atol=tolerance)
    np.testing.assert_allclose(reverse, of_logits, atol=1e-12)


def test_several_places_per_input(x64):
    rng = np.random.default_rng(2)
    inputs, kernel = rng.normal(size=(4, D)), rng.normal(size=(C, 2, 3, D))
    bias, targets = rng.normal(size=(C, 2, 3)), rng.integers(0, C, (4, 2, 3))
    targets[1, 0, 2] = -100

    @functools.partial(jax.jit, static_argnames="reduction")
    def both(inputs, kernel, bias, targets, reduction):
        logits = jnp.einsum("ni,c...i->nc...", inputs, kernel) + bias[None]
        options = {"linear_bias": bias, "reduction": reduction, "chunk_size": 2}
        got = F.linear_cross_entropy(inputs, kernel, targets, **options)
        return got, F.cross_entropy(logits, targets, reduction=reduction)

    for reduction in ("none", "mean", "sum"):
        got, wanted = both(inputs, kernel, bias, targets, reduction=reduction)
        np.testing.assert_allclose(got, wanted, rtol=1e-12)


def test_a_bad_label_in_one_of_several_places_is_named():
    inputs, kernel = jnp.ones((4, D)), jnp.ones((C, 2, D))
    labels = jnp.zeros((4, 2), int)
    f = checkify.checkify(jax.jit(jax.grad(F.linear_cross_entropy)))
    for given, words in (
        (labels, "None"),
        (labels.at[2, 1].set(C), "linear_cross_entropy: `target`"),
    ):
        error, _ = f(inputs, kernel, given)
        assert str(error.get()).startswith(words)


@pytest.mark.parametrize("chunk_size", [2, None])
def test_what_takes_no_part_may_hold_anything(chunk_size):
    kept = np.arange(N) != 3
    inputs = np.where(kept[:, None], INPUTS, np.nan).astype(np.float32)
    kernel, labels = KERNEL.astype(np.float32), np.where(kept, INDICES, -100)
    f = functools.partial(F.linear_cross_entropy, chunk_size=chunk_size)
    f = jax.jit(jax.value_and_grad(f, (0, 1)))
    value, gradients = f(inputs, kernel, labels)
    wanted, references = f(inputs[kept], kernel, labels[kept])
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_allclose(gradients[0][kept], references[0], atol=1e-7)
    np.testing.assert_allclose(gradients[1], references[1], atol=1e-7)
    assert not np.any(gradients[0][3])
    losses = jaxloss.linear_softmax_cross_entropy(
        inputs, kernel, np.abs(labels), where=kept[:, None], chunk_size=chunk_size
    )
    assert losses[3] == 0
    value, gradients = f(inputs, kernel, np.full(N, -100))
    assert np.isnan(value)
    assert not any(map(np.any, gradients))


@functools.partial(jax.jit, static_argnames=("reduction", "chunk_size"))
def value_and_slope(inputs, kernel, labels, **options):
    def f(inputs):
        return F.linear_cross_entropy(inputs, kernel, labels, **options)

    return f(inputs), jax.grad(lambda x: jnp.sum(f(x)))(inputs)


@pytest.mark.parametrize("bad", [-1, C, 2**31 - 1])
@pytest.mark.parametrize("chunk_size", [2, None])
def test_bad_label_is_nan_in_its_example_alone(bad, chunk_size):
    labels, only = INDICES.copy(), np.arange(N) == 2
    labels[2] = bad
    for reduction in ("none", "sum"):
        value, gradient = value_and_slope(
            INPUTS.astype(np.float32),
            KERNEL.astype(np.float32),
            labels,
            reduction=reduction,
            chunk_size=chunk_size,
        )
        np.testing.assert_array_equal(np.isnan(value), only if reduction == "none" else True)
        np.testing.assert_array_equal(np.isnan(gradient).all(-1), only)
        np.testing.assert_array_equal(np.isnan(gradient).any(-1), only)


def compiled(f, *args):
    return hlo.compiled(jax.value_and_grad(f, (0, 1)), *args)


DOORS = {
    "none": lambda x, w, y, **o: jaxloss.linear_softmax_cross_entropy(x, w, y, **o).sum(),
    "smoothed": lambda x, w, y, **o: jaxloss.linear_softmax_cross_entropy(
        x, w, y, label_smoothing=0.1, z_loss=1e-4, **o
    ).sum(),
    "mean": F.linear_cross_entropy,
}


@pytest.mark.parametrize("door", DOORS)
def test_memory_is_that_of_a_block(door):
    def temporaries(classes, **options):
        inputs = jax.ShapeDtypeStruct((4096, 64), jnp.float32)
        kernel = jax.ShapeDtypeStruct((classes, 64), jnp.float32)
        labels = jax.ShapeDtypeStruct((4096,), jnp.int32)
        f = functools.partial(DOORS[door], **options)
        return hlo.temporaries(compiled(f, inputs, kernel, labels))

    assert temporaries(32768) < 80e6  # The logits are 537 MB.
    few, many = (temporaries(classes, chunk_size=256) for classes in (131072, 524288))
    assert many < 1.2 * few


def test_three_products_for_a_mean():
    def products(door):
        args = jnp.ones((64, 32)), jnp.ones((128, 32)), jnp.zeros(64, jnp.int32)
        program = compiled(functools.partial(DOORS[door], chunk_size=128), *args)
        return hlo.cost(program, "flops") / (2 * 64 * 32 * 128)

    assert products("mean") == pytest.approx(3, abs=0.5)


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_modules_hold_torch_parameters(bias):
    options = {
        "out_features": (4, 2),
        "bias": bias,
        "weight": np.arange(1, C + 1, dtype=np.float32),
    }
    mine = jaxloss.nnx.LinearCrossEntropyLoss(D, C, **options, rngs=nnx.Rngs(0))
    twin = jaxloss.linen.LinearCrossEntropyLoss(D, C, **options)
    inputs = jnp.asarray(INPUTS, jnp.float32)
    targets = jnp.asarray(np.random.default_rng(5).integers(0, C, (N, 4, 2)))
    parameters = nnx.to_pure_dict(nnx.state(mine, nnx.Param))
    shapes = {"weight": (C * 8, D)} | ({"bias": (C * 8,)} if bias else {})
    assert jax.tree.map(jnp.shape, parameters) == {"linear": shapes}
    variables = twin.init(jax.random.key(0), inputs, targets)
    assert jax.tree.map(jnp.shape, variables) == {"params": {"linear": shapes}}
    assert all(np.all(np.abs(x) <= D**-0.5) for x in jax.tree.leaves((parameters, variables)))
    assert np.std(variables["params"]["linear"]["weight"]) > 0.2

    linear = parameters["linear"]
    linear = jax.tree.map(np.asarray, linear)
    logits = np.einsum("ni,cki->nck", inputs, linear["weight"].reshape(C, 8, D))
    logits = logits.reshape(N, C, 4, 2)
    logits = logits + linear["bias"].reshape(1, C, 4, 2) if bias else logits
    wanted = F.cross_entropy(logits, targets, options["weight"])
    np.testing.assert_allclose(mine(inputs, targets), wanted, rtol=1e-5)
    np.testing.assert_allclose(
        twin.apply({"params": parameters}, inputs, targets), wanted, rtol=1e-5
    )
    gradient = nnx.jit(nnx.grad(lambda loss: loss(inputs, targets)))(mine)
    assert jax.tree.map(jnp.shape, nnx.to_pure_dict(gradient)) == {"linear": shapes}
