"""Divergence of two linear layers: that of their logits, without the logits."""

# pyright: reportArgumentType=false, reportCallIssue=false
# Options in dictionaries lose their types.

import functools

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss

N, C, D, TEACHER_D = 7, 6, 5, 4
RNG = np.random.default_rng(0)
ARRAYS = {
    "inputs": RNG.normal(size=(N, D)),
    "kernel": RNG.normal(size=(C, D)),
    "teacher_inputs": RNG.normal(size=(N, TEACHER_D)),
    "teacher_kernel": RNG.normal(size=(C, TEACHER_D)),
}
BIASES = {"bias": RNG.normal(size=C), "teacher_bias": RNG.normal(size=C)}
NUMBERS = {"temperature": 1.3, "softcap": 2.0}
BETAS = pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])


def by_formula(
    inputs,
    kernel,
    teacher_inputs,
    teacher_kernel,
    *,
    bias=None,
    teacher_bias=None,
    temperature=1.0,
    softcap=None,
    beta=0.0,
):
    """The divergence from logits, as a book has it."""

    def log_probs(inputs, kernel, bias):
        logits = inputs @ kernel.T
        logits = logits if bias is None else logits + bias[None]
        logits = logits if softcap is None else softcap * jnp.tanh(logits / softcap)
        return jax.nn.log_softmax(logits / temperature)

    def divergence(log_p, log_q):
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)

    log_q = log_probs(inputs, kernel, bias)
    log_p = log_probs(teacher_inputs, teacher_kernel, teacher_bias)
    if beta in (0, 1):
        return divergence(log_q, log_p) if beta else divergence(log_p, log_q)
    log_m = jnp.log(beta * jnp.exp(log_p) + (1 - beta) * jnp.exp(log_q))
    return beta * divergence(log_p, log_m) + (1 - beta) * divergence(log_q, log_m)


def ours(floats, **options):
    return jaxloss.linear_softmax_divergence(**floats, **options)


def check_close(got, wanted, **tolerance):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for mine, reference in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(mine, reference, **tolerance)


@pytest.mark.parametrize("everything", [False, True], ids=["plain", "everything"])
@BETAS
def test_values_and_all_gradients(beta, everything, x64):
    floats = ARRAYS | (BIASES | NUMBERS if everything else {})
    floats = {name: jnp.asarray(value) for name, value in floats.items()}
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=N))

    @functools.partial(jax.jit, static_argnums=0)
    def both(f, floats):
        value, pull = jax.vjp(f, floats)
        return value, pull(cotangent)

    wanted, slopes = both(lambda floats: by_formula(**floats, beta=beta), floats)
    for chunk_size in (None,) if everything else (1, 3):
        found, mine = both(functools.partial(ours, beta=beta, chunk_size=chunk_size), floats)
        check_close(found, wanted, rtol=1e-12)
        check_close(mine, slopes, rtol=1e-10, atol=1e-13)


@BETAS
def test_every_derivative(beta, x64):
    floats = {name: jnp.asarray(x) for name, x in (ARRAYS | BIASES | NUMBERS).items()}

    def total(f):
        return lambda own: jnp.sum(f(floats | own) * jnp.arange(1.0, N + 1))

    f = total(functools.partial(ours, beta=beta, chunk_size=2))
    g = total(lambda floats: by_formula(**floats, beta=beta))
    own = {name: floats[name] for name in ("bias", "teacher_inputs", "temperature")}

    @jax.jit
    def derivatives(floats, own):
        tangents = jax.tree.map(jnp.sin, floats)
        along = [jax.jvp(h, (floats,), (tangents,)) for h in (f, g)]
        ahead, wanted = (jax.jacfwd(jax.grad(h))(own) for h in (f, g))
        return along, ahead, jax.jacrev(jax.grad(jax.checkpoint(f)))(own), wanted

    (along, wanted), *found, wanted_second = derivatives(floats, own)
    check_close(along, wanted, rtol=1e-11)
    for second in found:
        check_close(second, wanted_second, rtol=1e-9, atol=1e-11)


@BETAS
def test_agreement_is_zero(beta):
    x, w = (jnp.asarray(ARRAYS[k], jnp.float32) for k in ("inputs", "kernel"))

    def largest(x, w, u, v):
        floats = {"inputs": x, "kernel": w, "teacher_inputs": u, "teacher_kernel": v}
        return ours(floats, beta=beta).max()

    value, gradients = jax.jit(jax.value_and_grad(largest, (0, 1, 2, 3)))(x, w, x, w)
    assert 0 <= value < 1e-12
    assert all(np.max(np.abs(g)) < 1e-6 for g in gradients)


@BETAS
def test_absent_examples(beta):
    floats = {name: x.astype(np.float32) for name, x in ARRAYS.items()}
    where, kept = (np.arange(N) != 2)[:, None], np.arange(N) != 2
    given = {**floats, "inputs": np.where(where, floats["inputs"], np.float32(np.nan))}
    given["teacher_inputs"] = np.where(where, floats["teacher_inputs"], np.float32(np.inf))

    def total(floats, **options):
        losses = ours(floats, beta=beta, **options)
        return losses.sum(), losses

    f = jax.value_and_grad(total, has_aux=True)
    f = jax.jit(f, static_argnames="chunk_size")
    (_, losses), gradients = jax.tree.map(np.asarray, f(given, where=where, chunk_size=2))
    few = {k: x[kept] if k.endswith("inputs") else x for k, x in floats.items()}
    (_, wanted), references = f(few)
    assert losses[2] == 0
    check_close(losses[kept], wanted, rtol=2e-5, atol=1e-6)
    for name, gradient in gradients.items():
        if name.endswith("inputs"):
            assert not np.any(gradient[2])
            gradient = gradient[kept]
        check_close(gradient, references[name], rtol=2e-5, atol=1e-6)


def compiled(examples, classes, features, moving, **options):
    shapes = {"inputs": (examples, features), "kernel": (classes, features)}
    shapes |= {f"teacher_{name}": shape for name, shape in shapes.items()}
    args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes.values()]

    def f(*args):
        return ours(dict(zip(shapes, args, strict=True)), **options).sum()

    return hlo.compiled(jax.value_and_grad(f, moving), *args)


def test_a_teacher_without_gradient_costs_none():
    def products(moving):
        program = compiled(64, 128, 32, moving, chunk_size=128)
        return [i.op for i in hlo.instructions(program)].count("dot")

    # Two for the logits, of one block made once, and two for the gradients of each.
    assert products((0, 1)) == 4
    assert products((0, 1, 2, 3)) == 6


def test_memory_is_at_most_twice_that_of_the_loss():
    def loss(x, w, y):
        return jaxloss.linear_softmax_cross_entropy(x, w, y).sum()

    args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((4096, 64), (131072, 64))]
    labels = jax.ShapeDtypeStruct((4096,), jnp.int32)
    reference = hlo.temporaries(hlo.compiled(jax.value_and_grad(loss, (0, 1)), *args, labels))
    assert hlo.temporaries(compiled(4096, 131072, 64, (0, 1))) <= 2 * reference


LABELS = np.zeros(4096, np.int32)
SECOND = {
    "loss": lambda x, w: jaxloss.linear_softmax_cross_entropy(x, w, LABELS),
    "statistics": lambda x, w: jaxloss.linear_softmax_statistics(x, w, LABELS).entropy,
    "divergence": lambda x, w: jaxloss.linear_softmax_divergence(x, w, x, 2 * w),
}


@pytest.mark.parametrize("losses", SECOND.values(), ids=SECOND)
def test_the_second_derivative_takes_blocks_too(losses):
    x, w = (jax.ShapeDtypeStruct((size, 16), jnp.float32) for size in (4096, 8192))

    def product(x, w, dot):
        slope = jax.grad(lambda x: jnp.sum(losses(x, w)))
        return jax.grad(lambda x: jnp.vdot(slope(x), dot))(x)

    assert hlo.temporaries(hlo.compiled(product, x, w, x)) < 1.5 * 4 * 4096 * 8192


@pytest.mark.parametrize("half", [jnp.bfloat16, jnp.float16], ids=lambda h: h.__name__)
def test_half_operands(half):
    rng = np.random.default_rng(2)
    shapes = {"inputs": (70, 40), "kernel": (301, 40)}
    shapes |= {"teacher_inputs": (70, 30), "teacher_kernel": (301, 30)}
    halves = {name: jnp.asarray(rng.normal(size=s) / 3, half) for name, s in shapes.items()}
    factors = rng.uniform(0.5, 1, 70)

    @functools.partial(jax.jit, static_argnums=0)
    def both(f, floats, factors):
        def total(floats):
            return jnp.sum(f(floats) * factors)

        return f(floats), jax.grad(total)(floats)

    f = functools.partial(ours, chunk_size=100)
    losses, gradients = both(f, halves, factors.astype(np.float32))
    with jax.enable_x64(True):
        wide = {name: np.asarray(x, np.float64) for name, x in halves.items()}
        found = both(lambda floats: by_formula(**floats), wide, factors)
        wanted, references = jax.tree.map(np.asarray, found)
    np.testing.assert_allclose(losses, wanted, rtol=2e-6)
    for name, gradient in gradients.items():
        assert gradient.dtype == half
        difference = np.float64(gradient) - references[name]
        error = np.linalg.norm(difference) / np.linalg.norm(references[name])
        assert error <= {jnp.bfloat16: 4e-3, jnp.float16: 5e-4}[half]


def with_all_gradients(f):
    return jax.jit(jax.value_and_grad(lambda *args: jnp.mean(f(*args)), (0, 1, 2, 3)))


def in_blocks(beta):
    return functools.partial(jaxloss.linear_softmax_divergence, beta=beta, chunk_size=8)


@functools.cache
def on_one_device(beta):
    """Arguments, and what is wanted of them."""
    rng = np.random.default_rng(4)
    arrays = [rng.normal(size=s).astype(np.float32) for s in ((16, 8), (32, 8)) * 2]
    return arrays, jax.tree.map(np.asarray, with_all_gradients(in_blocks(beta))(*arrays))


@BETAS
@pytest.mark.parametrize("door", ["named", AxisType.Explicit, AxisType.Auto], ids=str)
def test_classes_and_examples_on_several_devices(door, beta):
    arrays, wanted = on_one_device(beta)
    specs = (P("data", None), P("model", None)) * 2
    kind = AxisType.Auto if door == "named" else door
    grid = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind,) * 2)

    part = in_blocks(beta)
    if door == "named":
        part = functools.partial(part, axis_name="model")
        part = jax.shard_map(part, mesh=grid, in_specs=specs, out_specs=P("data"))

    with jax.set_mesh(grid):
        args = [
            jax.device_put(a, NamedSharding(grid, s)) for a, s in zip(arrays, specs, strict=True)
        ]
        program = hlo.partitioned(with_all_gradients(part), *args)
        got = program(*args)
    check_close(got, wanted, rtol=2e-5, atol=2e-6)
    assert hlo.gathering(program) == []


def test_a_teacher_of_another_width():
    floats = {name: x.astype(np.float32) for name, x in ARRAYS.items()}
    few = {k: x.astype(jnp.bfloat16) if k.startswith("teacher") else x for k, x in floats.items()}
    wide = {k: x.astype(jnp.float32) for k, x in few.items()}
    np.testing.assert_allclose(ours(few), ours(wide), rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda floats: ours(floats).sum()))(few)
    assert {k: x.dtype for k, x in gradient.items()} == {k: x.dtype for k, x in few.items()}
    with jax.enable_x64(True):
        exact = {k: jnp.asarray(x) for k, x in ARRAYS.items()}
        mixed = {k: x if k.startswith("teacher") else floats[k] for k, x in exact.items()}
        losses = ours(mixed, temperature=2.0)
        assert losses.dtype == jnp.float64
        np.testing.assert_allclose(losses, by_formula(**exact, temperature=2.0), rtol=1e-5)


def test_wrong_calls():
    floats = {name: jnp.asarray(x, jnp.float32) for name, x in ARRAYS.items()}
    wrong = [
        ({"teacher_kernel": jnp.zeros((C + 1, TEACHER_D))}, "`teacher_kernel`.*6 classes"),
        ({"teacher_inputs": jnp.zeros((N + 1, TEACHER_D))}, "`teacher_inputs`.*as `inputs` has"),
        ({"teacher_bias": jnp.zeros(C + 1)}, r"`teacher_bias`.*have shape \(6,\)"),
        ({"beta": 1.5}, r"`beta`.*in \[0, 1\]"),
        ({"temperature": 0.0}, "`temperature`.*be positive"),
    ]
    for change, words in wrong:
        with pytest.raises(ValueError, match=f"linear_softmax_divergence.*{words}"):
            ours(floats | change)
