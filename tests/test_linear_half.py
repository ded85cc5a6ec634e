"""The linear loss of half operands: products of halves, float32 sums, gradients rounded late."""

import functools

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxloss
from jaxloss import functional as F
from jaxloss.core.linear import cutting

# Blocks of 24 examples at most, of which the last has fewer; a product of 40 features.
N, D, C, CHUNK = 70, 40, 301, 100
RNG = np.random.default_rng(3)
INPUTS, KERNEL = RNG.normal(size=(N, D)), RNG.normal(size=(C, D)) / 4
LABELS = RNG.integers(0, C, N)
FACTORS = RNG.uniform(0.5, 2, N)
EVERYTHING = {"label_smoothing": 0.1, "z_loss": 0.01, "class_weights": RNG.uniform(0.5, 2, C)}
KINDS = {
    "labels": (LABELS, {}),
    "probabilities": (RNG.dirichlet(np.ones(C), N), {}),
    "everything": (LABELS, EVERYTHING),
}
HALVES = [jnp.bfloat16, jnp.float16]
# Of a gradient's norm, by default.
BOUND = {jnp.bfloat16: 4e-3, jnp.float16: 5e-4}


def of_logits(inputs, kernel, labels, **options):
    """The loss by its formula, in float64."""
    logits = inputs @ kernel.T
    smoothing, z_loss = options.get("label_smoothing", 0), options.get("z_loss", 0)
    weights = options.get("class_weights", np.ones(C))
    targets = jax.nn.one_hot(labels, C, dtype=logits.dtype) if labels.ndim == 1 else labels
    targets = (1 - smoothing) * targets + smoothing / C
    lse = jax.nn.logsumexp(logits, -1, keepdims=True)
    return jnp.sum(weights[None] * targets * (lse - logits), -1) + z_loss * lse[:, 0] ** 2


def linear(inputs, kernel, labels, **options):
    options = {"chunk_size": CHUNK, **options}
    return jaxloss.linear_softmax_cross_entropy(inputs, kernel, labels, **options)


def operands(half):
    """Half operands, and the same numbers in float64."""
    halves = [jnp.asarray(x, half) for x in (INPUTS, KERNEL)]
    return halves, [np.asarray(x, np.float64) for x in halves]


def exactly(f, *args):
    """f in float64, as numpy's arrays."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(f)(*map(jnp.asarray, args)))


def distance(mine, reference):
    """Relative, in the Euclidean norm."""
    return np.linalg.norm(np.float64(mine) - reference) / np.linalg.norm(reference)


@pytest.mark.parametrize("half", HALVES, ids=lambda h: h.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients(kind, half):
    labels, options = KINDS[kind]
    halves, wide = operands(half)

    def both(f, factors, **more):
        """The gradients of the weighted sum, and the losses."""

        def total(x, w):
            losses = f(x, w, labels, **options, **more)
            return jnp.sum(losses * factors), losses

        return jax.jit(jax.grad(total, (0, 1), has_aux=True))

    wanted, exact = exactly(both(of_logits, FACTORS), *wide)
    factors = FACTORS.astype(np.float32)
    gradients, losses = both(linear, factors)(*halves)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, exact, rtol=1e-6)
    for mine_x, reference in zip(gradients, wanted, strict=True):
        assert mine_x.dtype == half
        assert distance(mine_x, reference) < BOUND[half]
    highest, _ = both(linear, factors, precision="highest")(*halves)
    for mine_x, reference in zip(highest, wanted, strict=True):
        ulp = np.spacing(np.abs(reference).astype(np.float32)) * 2.0 ** (23 - jnp.finfo(half).nmant)
        # Where terms cancel, what float32 loses of them.
        slack = ulp + 1e-6 * np.max(np.abs(reference))
        assert np.all(np.abs(np.float64(mine_x) - reference) <= slack)


@pytest.mark.parametrize("half", HALVES, ids=lambda h: h.__name__)
def test_mean(half):
    halves, wide = operands(half)
    wanted = exactly(jax.grad(lambda x, w: of_logits(x, w, LABELS).mean(), (0, 1)), *wide)
    mine = jax.jit(
        jax.grad(lambda x, w: F.linear_cross_entropy(x, w, LABELS, chunk_size=CHUNK), (0, 1))
    )
    for mine_x, reference in zip(mine(*halves), wanted, strict=True):
        assert mine_x.dtype == half
        assert distance(mine_x, reference) < BOUND[half]


def test_small_factors_do_not_underflow():
    """A factor of 1e-6 leaves nothing of p - q in float16, but all of it in float32 sums."""
    halves, wide = operands(jnp.float16)
    halves[0], wide[0] = halves[0] * 1000, wide[0] * 1000
    halves[1], wide[1] = halves[1] / 1024, wide[1] / 1024

    def scaled(f, factor):
        return lambda w: jnp.sum(f(w) * factor)

    wanted = exactly(jax.grad(scaled(lambda w: of_logits(wide[0], w, LABELS), 1e-6)), wide[1])
    f = scaled(lambda w: linear(halves[0], w, LABELS), np.float32(1e-6))
    mine = jax.jit(jax.grad(f))(halves[1])
    assert distance(mine, wanted) < 2e-3  # The result itself is nearly too small for float16.


def test_derivatives_of_other_modes():
    halves, wide = operands(jnp.bfloat16)

    def derivatives(f):
        def both(x, w):
            along = jax.jvp(lambda x, w: f(x, w, LABELS), (x, w), (x, w))[1]
            curvature = jax.jvp(jax.grad(lambda x: jnp.sum(f(x, w, LABELS))), (x,), (x,))[1]
            return along, curvature

        return both

    along, curvature = jax.jit(derivatives(linear))(*halves)
    wanted = exactly(derivatives(of_logits), *wide)
    assert distance(along, wanted[0]) < 1e-6
    assert distance(curvature, wanted[1]) < BOUND[jnp.bfloat16]

    @jax.jit
    def slopes(x):
        alone = jax.vmap(jax.grad(lambda x, y: linear(x, halves[1], y)))(x, LABELS)
        return alone, jax.grad(lambda x: jnp.sum(linear(x, halves[1], LABELS)))(x)

    alone, together = slopes(halves[0])
    assert distance(alone, np.float64(together)) < BOUND[jnp.bfloat16]


@pytest.mark.parametrize("half", HALVES, ids=lambda h: h.__name__)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_products_are_of_halves(reduction, half):
    halves, _ = operands(half)

    def loss(x, w):
        return jnp.sum(F.linear_cross_entropy(x, w, LABELS, reduction=reduction, chunk_size=CHUNK))

    name = {jnp.bfloat16: "bf16", jnp.float16: "f16"}[half]
    found = hlo.products(jax.value_and_grad(loss, (0, 1)), *halves)
    assert {*found} == {(name, name, "f32")}


def test_a_float32_operand_widens_the_other():
    (half, _), (wide, kernel) = operands(jnp.bfloat16)
    kernel = jnp.asarray(kernel, jnp.float32)
    mixed = linear(half, kernel, LABELS)
    np.testing.assert_array_equal(mixed, linear(jnp.asarray(wide, jnp.float32), kernel, LABELS))


@pytest.mark.parametrize("weight", [1e-7, 1e6])
def test_class_weights_of_any_size(weight):
    """The mean divides by them, so that they change nothing."""
    halves, _ = operands(jnp.float16)

    @jax.jit
    def gradients(weight, x, w):
        weight = jnp.full(C, weight, jnp.float32)
        f = jax.grad(lambda x, w: F.linear_cross_entropy(x, w, LABELS, weight=weight), (0, 1))
        return f(x, w)

    for mine, plain in zip(gradients(weight, *halves), gradients(1.0, *halves), strict=True):
        assert distance(mine, np.float64(plain)) < BOUND[jnp.float16]


@pytest.mark.parametrize("half", HALVES, ids=lambda h: h.__name__)
def test_the_factor_of_an_absent_example_is_not_read(half):
    halves, _ = operands(half)
    where = np.arange(N) % 3 > 0
    factors = np.where(where, 1, np.nan).astype(np.float32)

    def loss(x, w):
        losses = linear(x, w, LABELS, where=where[:, None])
        return jnp.sum(jnp.where(where, losses * factors, 0))

    for gradient in jax.jit(jax.grad(loss, (0, 1)))(*halves):
        assert np.all(np.isfinite(np.float32(gradient)))


@pytest.mark.parametrize("half", HALVES, ids=lambda h: h.__name__)
@pytest.mark.parametrize("sharded", ["classes", "examples"])
def test_blocks_on_devices_are_summed_in_float32(sharded, half):
    """Many blocks, and a mean over many examples; rounded for each, the sum would be worse."""
    rng, classes = np.random.default_rng(0), 64
    x, w = (
        jnp.asarray(x, half) for x in (rng.normal(size=(512, 8)), rng.normal(size=(classes, 8)))
    )
    y = jnp.asarray(rng.integers(0, classes, 512), jnp.int32)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    own = P("d") if sharded == "classes" else P()
    rows = P() if sharded == "classes" else P("d")
    name = "d" if sharded == "classes" else None
    losses = functools.partial(jaxloss.linear_softmax_cross_entropy, chunk_size=1, axis_name=name)
    spread = jax.shard_map(losses, mesh=mesh, in_specs=(rows, own, rows), out_specs=rows)
    mine = jax.jit(jax.grad(lambda w: spread(x, w, y).mean()))(w)
    wide = np.asarray(x, np.float64), np.asarray(w, np.float64)

    def mean(w):
        logits = wide[0] @ w.T
        own = jnp.take_along_axis(logits, y[:, None], 1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits, -1) - own)

    bound = {jnp.bfloat16: 1.9e-3, jnp.float16: 3e-4}[half]
    assert distance(mine, exactly(jax.grad(mean), wide[1])) < bound


def test_examples_that_vary_over_devices_beside_labels_that_do_not():
    (x, w), _ = operands(jnp.float32)
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    def mean(x, w, y):
        return jax.lax.pmean(F.linear_cross_entropy(x, w, y), "d")

    spread = jax.shard_map(mean, mesh=mesh, in_specs=(P("d"), P(), P()), out_specs=P())
    twice = jnp.concatenate([x, x])
    gradient = jax.jit(jax.grad(spread, 1))(twice, w, LABELS)
    wanted = jax.jit(jax.grad(lambda w: F.linear_cross_entropy(x, w, LABELS)))(w)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-7)


def test_the_context_says_the_precision_where_the_argument_does_not():
    halves, _ = operands(jnp.bfloat16)

    def slope(**options):
        f = jax.grad(lambda w: jnp.sum(linear(halves[0], w, LABELS, **options)))
        return jax.jit(f)(halves[1])

    plain = slope()
    with jax.default_matmul_precision("highest"):
        inside = slope()
    np.testing.assert_array_equal(inside, slope(precision="highest"))
    assert not np.array_equal(inside, plain)


@pytest.mark.parametrize("half", HALVES, ids=lambda h: h.__name__)
def test_several_blocks_share_their_products(half, monkeypatch):
    """As with blocks of their own, and with examples left over that are absent."""
    monkeypatch.setattr(cutting, "_BLOCK_LOGITS", 64)
    monkeypatch.setattr(cutting, "_BLOCK_EXAMPLES", 8)
    (x, w), wide = operands(half)
    # The sizes of blocks are no argument: so many examples no other test has.
    count = N - 1
    x, wide[0] = x[:count], wide[0][:count]
    labels = np.where(np.arange(count) == 3, -100, LABELS[:count])

    def plain(x, w):
        losses = of_logits(x, w, LABELS[:count])
        return jnp.sum(jnp.where(jnp.arange(count) == 3, 0, losses)) / (count - 1)

    program = jax.jit(jax.grad(F.linear_cross_entropy, (0, 1)))
    assert str(jax.make_jaxpr(program)(x, w, labels)).count("scan") > 1
    wanted = exactly(jax.grad(plain, (0, 1)), *wide)
    for mine, reference in zip(program(x, w, labels), wanted, strict=True):
        assert distance(mine, reference) < BOUND[half]


def test_an_absent_example_leaves_small_gradients_alone():
    x, w = (jnp.asarray(a, jnp.float16) for a in (INPUTS, KERNEL))
    labels = np.where(np.arange(N) == 3, -100, LABELS)
    small = jnp.full(C, 1e-7)
    f = jax.jit(jax.grad(F.linear_cross_entropy, 1))
    assert distance(f(x, w, labels, weight=small), np.float64(f(x, w, labels))) < 1e-3


def test_no_features():
    x, w, y = jnp.zeros((7, 0)), jnp.zeros((3, 0)), jnp.zeros(7, int)
    for f in (jaxloss.linear_softmax_cross_entropy, F.linear_cross_entropy):
        np.testing.assert_allclose(f(x, w, y), np.log(3), rtol=1e-6)
