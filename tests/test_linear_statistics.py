"""Statistics of a linear layer's softmax: those of its logits, without the logits."""

# pyright: reportArgumentType=false, reportCallIssue=false
# Options in dictionaries lose their types.

import functools
import math

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss

# 7 examples do not divide into equal blocks.
N, C, D, K = 7, 6, 5, 3
RNG = np.random.default_rng(0)
ARRAYS = {
    "inputs": 2 * RNG.normal(size=(N, D)),
    "kernel": RNG.normal(size=(C, D)),
    "bias": RNG.normal(size=C),
}
NUMBERS = {"temperature": 0.7, "softcap": 3.0}
ONE, SEVERAL = RNG.integers(0, C, N), RNG.integers(0, C, (N, K))
FLOATS = ("log_prob", "log_normalizer", "entropy")


def by_formula(inputs, kernel, labels, bias=None, temperature=1.0, softcap=None):
    """All of it from logits, as a book has it."""
    logits = inputs @ kernel.T
    logits = logits if bias is None else logits + bias[None]
    logits = logits if softcap is None else softcap * jnp.tanh(logits / softcap)
    logits = logits / temperature
    log_p = jax.nn.log_softmax(logits)
    several = labels if labels.ndim > 1 else labels[:, None]
    chosen = jnp.take_along_axis(log_p, several, 1).reshape(labels.shape)
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, -1)
    return chosen, jax.nn.logsumexp(logits, -1), entropy, jnp.argmax(logits, -1)


def problem(labels, everything, dtype):
    """The statistics as functions of what may be differentiated: ours, and by the formula."""
    floats = ARRAYS | NUMBERS if everything else {k: ARRAYS[k] for k in ("inputs", "kernel")}
    floats = {name: jnp.asarray(value, dtype) for name, value in floats.items()}

    def ours(floats, **options):
        return jaxloss.linear_softmax_statistics(**floats, labels=jnp.asarray(labels), **options)

    def formula(floats):
        return by_formula(**floats, labels=jnp.asarray(labels))

    return ours, formula, floats


def check_close(got, wanted, **tolerance):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for mine, reference in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(mine, reference, **tolerance)


@pytest.mark.parametrize("labels", [ONE, SEVERAL], ids=["one", "several"])
@pytest.mark.parametrize(("chunk_size", "everything"), [(1, False), (3, True), (None, True)])
def test_values_and_all_gradients(chunk_size, labels, everything, x64):
    ours, formula, floats = problem(labels, everything, jnp.float64)

    @functools.partial(jax.jit, static_argnums=0)
    def both(f, floats):
        value, pull = jax.vjp(lambda floats: f(floats)[:3], floats)
        slopes = []
        for used in (FLOATS, *((name,) for name in FLOATS)):
            rng = np.random.default_rng(1)
            cotangents = tuple(
                jnp.asarray(rng.normal(size=x.shape) * (name in used))
                for name, x in zip(FLOATS, value, strict=True)
            )
            slopes.append(pull(cotangents))
        return value, slopes, f(floats)[3]

    found, slopes, predicted = both(functools.partial(ours, chunk_size=chunk_size), floats)
    wanted, wanted_slopes, wanted_predicted = both(formula, floats)
    check_close(found, wanted, rtol=1e-12)
    check_close(slopes, wanted_slopes, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(predicted, wanted_predicted)


def test_every_derivative(x64):
    ours, formula, floats = problem(SEVERAL, True, jnp.float64)
    factors = jax.tree.map(np.cos, jax.jit(formula)(floats)[:3])

    def total(f):
        return lambda floats: sum(map(jnp.vdot, f(floats)[:3], factors))

    f, g = total(functools.partial(ours, chunk_size=2)), total(formula)
    own = {name: floats[name] for name in ("inputs", "temperature", "softcap")}

    def of_some(f):
        return lambda own: f(floats | own)

    @jax.jit
    def derivatives(floats, own):
        tangents = jax.tree.map(jnp.sin, floats)
        along = [jax.jvp(h, (floats,), (tangents,)) for h in (f, g)]
        back = jax.jacrev(jax.jacrev(jax.checkpoint(of_some(f))))(own)
        return along, jax.hessian(of_some(f))(own), back, jax.hessian(of_some(g))(own)

    (along, wanted), *found, wanted_second = derivatives(floats, own)
    check_close(along, wanted, rtol=1e-11)
    for second in found:
        check_close(second, wanted_second, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("labels", [ONE, SEVERAL], ids=["one", "several"])
@pytest.mark.parametrize("chunk_size", [2, None])
def test_absent_examples_and_bad_labels(chunk_size, labels):
    inputs, kernel = (np.array(ARRAYS[k], np.float32) for k in ("inputs", "kernel"))
    inputs[3], bad = np.nan, labels.copy()
    bad[3], bad[(5, *[1] * (labels.ndim - 1))] = 99, -1
    where = (np.arange(N) != 3)[:, None]

    def total(inputs, kernel, labels):
        found = jaxloss.linear_softmax_statistics(
            inputs, kernel, labels, where=where, chunk_size=chunk_size
        )
        return sum(jnp.sum(jnp.nan_to_num(x)) for x in found[:3]), found

    (_, found), gradients = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(
        inputs, kernel, bad
    )
    found, gradients = jax.tree.map(np.asarray, (found, gradients))
    assert [np.sum(np.abs(x[3])) for x in found] == [0, 0, 0, 1]
    assert found.prediction[3] == -1
    assert not np.any(gradients[0][3])
    wanted = jax.jit(by_formula)(np.nan_to_num(inputs), kernel, labels)
    for mine, reference in zip(found, wanted, strict=True):
        reference = np.array(reference)
        reference[3] = mine[3]
        is_bad = np.isnan(mine)
        np.testing.assert_allclose(mine[~is_bad], reference[~is_bad], rtol=1e-5)
    # The bad label's place alone.
    np.testing.assert_array_equal(np.isnan(found.log_prob), bad == -1)
    assert not np.any(np.isnan(found.log_normalizer) | np.isnan(found.entropy))


def test_what_is_unused_costs_nothing():
    args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1024, 32), (4096, 32))]
    labels = jax.ShapeDtypeStruct((1024,), jnp.int32)

    def of(*names):
        def f(inputs, kernel, labels):
            found = jaxloss.linear_softmax_statistics(inputs, kernel, labels, chunk_size=512)
            return sum(jnp.sum(getattr(found, name)) for name in names)

        return f

    def with_gradients(f):
        return hlo.compiled(jax.value_and_grad(f, (0, 1)), *args, labels)

    def loss(inputs, kernel, labels):
        return jaxloss.linear_softmax_cross_entropy(inputs, kernel, labels, chunk_size=512).sum()

    reference = with_gradients(loss)
    values, bare = (hlo.compiled(of(*names), *args, labels) for names in (FLOATS, FLOATS[1:2]))
    # One product for the values, of one output or of all; as many as the loss's for gradients.
    assert [i.op for i in hlo.instructions(values)].count("dot") == 1
    for program in map(with_gradients, (of(*FLOATS), *map(of, FLOATS))):
        assert hlo.cost(program, "flops") <= 1.2 * hlo.cost(reference, "flops")
        assert hlo.temporaries(program) <= hlo.temporaries(reference) + 4 * 1024 * 512
    assert hlo.cost(values, "bytes accessed") > 1.05 * hlo.cost(bare, "bytes accessed")


def test_memory_is_that_of_the_loss():
    def temporaries(f):
        args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((4096, 64), (131072, 64))]
        labels = jax.ShapeDtypeStruct((4096,), jnp.int32)
        return hlo.temporaries(hlo.compiled(jax.value_and_grad(f, (0, 1)), *args, labels))

    def everything(x, w, y):
        return sum(jnp.sum(v) for v in jaxloss.linear_softmax_statistics(x, w, y)[:3])

    def loss(x, w, y):
        return jaxloss.linear_softmax_cross_entropy(x, w, y).sum()

    assert temporaries(everything) <= 1.01 * temporaries(loss)


@pytest.mark.parametrize("half", [jnp.bfloat16, jnp.float16], ids=lambda h: h.__name__)
def test_half_operands(half):
    rng = np.random.default_rng(2)
    halves = [jnp.asarray(rng.normal(size=s) / 3, half) for s in ((70, 40), (301, 40))]
    labels, factors = rng.integers(0, 301, 70), rng.uniform(-1, 1, (3, 70))

    def total(f):
        return lambda x, w: sum(
            jnp.sum(v * u) for v, u in zip(f(x, w, jnp.asarray(labels))[:3], factors, strict=True)
        )

    ours = functools.partial(jaxloss.linear_softmax_statistics, chunk_size=100)

    @functools.partial(jax.jit, static_argnums=0)
    def both(f, x, w):
        return f(x, w, jnp.asarray(labels)), jax.grad(total(f), (0, 1))(x, w)

    found, gradients = both(ours, *halves)
    with jax.enable_x64(True):
        wide = [np.asarray(x, np.float64) for x in halves]
        wanted, references = jax.tree.map(np.asarray, both(by_formula, *wide))
    for mine, reference in zip(found[:3], wanted, strict=False):
        np.testing.assert_allclose(mine, reference, rtol=1e-6)
    for mine, reference in zip(gradients, references, strict=True):
        assert mine.dtype == half
        error = np.linalg.norm(np.float64(mine) - reference) / np.linalg.norm(reference)
        assert error <= {jnp.bfloat16: 4e-3, jnp.float16: 5e-4}[half]
    x, w = halves
    kinds = hlo.products(jax.grad(total(ours), (0, 1)), x, w)
    name = {jnp.bfloat16: "bf16", jnp.float16: "f16"}[half]
    assert set(kinds) == {(name, name, "f32")}


@pytest.mark.parametrize("door", ["named", AxisType.Explicit, AxisType.Auto], ids=str)
def test_classes_and_examples_on_several_devices(door):
    rng = np.random.default_rng(4)
    arrays = [rng.normal(size=s).astype(np.float32) for s in ((16, 8), (32, 8))]
    labels, factors = rng.integers(0, 32, (16, K)), rng.uniform(-1, 1, (16,)).astype(np.float32)
    specs = P("data", None), P("model", None), P("data", None), P("data")
    kind = AxisType.Auto if door == "named" else door
    grid = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind,) * 2)
    axis_name = "model" if door == "named" else None

    def statistics(x, w, labels, factors, **options):
        return jaxloss.linear_softmax_statistics(x, w, labels, chunk_size=8, **options)

    part = functools.partial(statistics, axis_name=axis_name)
    if door == "named":
        part = jax.shard_map(part, mesh=grid, in_specs=specs, out_specs=P("data"))

    def total(f):
        def of(x, w, labels, factors):
            found = f(x, w, labels, factors)
            parts = (found.log_prob.mean(-1), found.log_normalizer, found.entropy)
            return sum(jnp.sum(x * factors) for x in parts), found

        return jax.value_and_grad(of, (0, 1), has_aux=True)

    args = (*arrays, labels, factors)
    wanted = jax.jit(total(statistics))(*args)
    with jax.set_mesh(grid):
        args = [jax.device_put(a, NamedSharding(grid, s)) for a, s in zip(args, specs, strict=True)]
        program = hlo.partitioned(total(part), *args)
        got = program(*args)
    check_close(got, wanted, rtol=2e-5, atol=2e-6)
    # The largest of each device, where the compiler parts a search for the first of them.
    assert all(math.prod(i.dims) <= 16 * 4 for i in hlo.gathering(program))
    assert got[0][1].log_prob.sharding.spec[0] == "data"


def test_no_labels():
    inputs, kernel = (jnp.asarray(ARRAYS[k], jnp.float32) for k in ("inputs", "kernel"))
    f = functools.partial(jaxloss.linear_softmax_statistics, chunk_size=2)
    found, wanted = f(inputs, kernel, jnp.zeros((N, 0), int)), f(inputs, kernel, ONE)
    assert found.log_prob.shape == (N, 0)
    check_close(found[1:], wanted[1:], rtol=1e-6)
    none = f(inputs[:0], kernel, jnp.zeros((0, K), int))
    assert [x.shape for x in none] == [(0, K), (0,), (0,), (0,)]


def test_the_derivative_along_a_direction_of_which_a_part_is_known():
    inputs, kernel = (jnp.asarray(ARRAYS[k], jnp.float32) for k in ("inputs", "kernel"))

    def along(direction):
        def f(x, w):
            return jaxloss.linear_softmax_statistics(x, w, ONE, chunk_size=2).entropy.sum()

        return jax.jvp(f, (inputs, kernel), (direction, jnp.ones_like(kernel)))[1]

    def entropy(x):
        return jaxloss.linear_softmax_statistics(x, kernel, ONE, chunk_size=2).entropy.sum()

    found, wanted = jax.jit(lambda x: [jax.grad(f)(x) for f in (along, entropy)])(inputs)
    check_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_wrong_calls():
    inputs, kernel = (jnp.asarray(ARRAYS[k], jnp.float32) for k in ("inputs", "kernel"))
    f = jaxloss.linear_softmax_statistics
    for labels in (jnp.zeros((N, K, 1), int), jnp.zeros(N - 1, int), jnp.zeros((K, N), int)):
        with pytest.raises(ValueError, match=r"linear_softmax_statistics.*`labels`.*have shape"):
            f(inputs, kernel, labels)
    for name in NUMBERS:
        with pytest.raises(ValueError, match=rf"`{name}`.*be positive"):
            f(inputs, kernel, jnp.asarray(ONE), **{name: 0.0})
    with pytest.raises(ValueError, match=r"`kernel`.*at least one class"):
        f(inputs, jnp.zeros((0, D)), jnp.asarray(ONE))
    checked = checkify.checkify(jax.jit(f), errors=checkify.user_checks)
    error, _ = checked(inputs, kernel, jnp.asarray(SEVERAL).at[2, 1].set(C))
    with pytest.raises(checkify.JaxRuntimeError, match=rf"`labels`.*in \[0, {C}\)"):
        error.throw()
