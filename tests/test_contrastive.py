"""Contrast over a batch: by blocks and around the ring, in halves, at the extremes."""

# pyright: reportArgumentType=false, reportCallIssue=false
# Options in dictionaries lose their types.

import functools

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss
from benchmarks.hlo import collectives

N, D = 40, 5
RNG = np.random.default_rng(0)
X1, X2 = RNG.normal(size=(2, N, D))
LABELS = RNG.integers(-4, 5, N)
WHERE = RNG.uniform(size=N) < 0.8
FACTORS = RNG.uniform(0.5, 2, N)
HALVES = [jnp.bfloat16, jnp.float16]


def of_pairs(x1, x2, number, labels, **options):
    return jaxloss.info_nce_loss(x1, x2, temperature=number, **options)


def of_rows(x1, x2, number, labels, **options):
    return jaxloss.info_nce_loss(x1, x2, temperature=number, symmetric=False, **options)


def of_sigmoids(x1, x2, number, labels, **options):
    return jaxloss.sigmoid_contrastive_loss(x1, x2, scale=number, bias=-number, **options)


def of_labels(x1, x2, number, labels, **options):
    return jaxloss.supervised_contrastive_loss(x1, labels, temperature=number, **options)


# The same by their formulas, with all similarities.
def plain_pairs(x1, x2, number, labels):
    z = x1 @ x2.T / number
    return (jax.nn.logsumexp(z, 1) + jax.nn.logsumexp(z, 0)) / 2 - jnp.diag(z)


def plain_rows(x1, x2, number, labels):
    z = x1 @ x2.T / number
    return jax.nn.logsumexp(z, 1) - jnp.diag(z)


def plain_sigmoids(x1, x2, number, labels):
    z = number * (x1 @ x2.T) - number
    return jnp.sum(jax.nn.softplus((1 - 2 * jnp.eye(len(x1))) * z), 1)


def plain_labels(x1, x2, number, labels):
    z, same = x1 @ x1.T / number, jnp.eye(len(x1), dtype=bool)
    positive = (labels[:, None] == labels[None]) & ~same
    log_sum = jax.nn.logsumexp(jnp.where(same, -jnp.inf, z), 1, keepdims=True)
    count = jnp.maximum(jnp.sum(positive, 1), 1)
    return jnp.sum(jnp.where(positive, log_sum - z, 0), 1) / count


PLAIN = {
    of_pairs: plain_pairs,
    of_rows: plain_rows,
    of_sigmoids: plain_sigmoids,
    of_labels: plain_labels,
}
EVERY = pytest.mark.parametrize("f", PLAIN, ids=lambda f: f.__name__)
KINDS = pytest.mark.parametrize("f", [of_pairs, of_sigmoids, of_labels], ids=lambda f: f.__name__)
SOFTMAX = pytest.mark.parametrize("f", [of_pairs, of_labels], ids=lambda f: f.__name__)


def close(got, wanted, rtol):
    """Relative to the largest entry of each array."""
    for mine, reference in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        mine, reference = np.asarray(mine, np.float64), np.asarray(reference, np.float64)
        np.testing.assert_allclose(mine, reference, rtol=0, atol=rtol * np.max(np.abs(reference)))


def test_columns_alone_may_be_spread():
    grid = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Explicit,))
    x1, x2 = jnp.asarray(X1, jnp.float32), jnp.asarray(X2, jnp.float32)
    wanted = jaxloss.info_nce_loss(x1, x2)
    with jax.set_mesh(grid):
        x1, x2 = (jax.device_put(x, NamedSharding(grid, P(a))) for x, a in ((x1, None), (x2, "a")))
        losses = jax.jit(jaxloss.info_nce_loss)(x1, x2)
    assert losses.sharding.spec == P("a")
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)


@KINDS
def test_all_orders_in_ragged_blocks(f, x64):
    args = jnp.asarray(X1[:11]), jnp.asarray(X2[:11]), jnp.asarray(0.5)
    labels, factors = jnp.asarray(LABELS[:11]), jnp.asarray(FACTORS[:11])
    dots = tuple(map(jnp.ones_like, args))

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(f, *args):
        def total(*args):
            return jnp.vdot(factors, f(*args, labels))

        slope = jax.grad(total, (0, 1, 2))
        value = jax.jvp(lambda *args: f(*args, labels), args, dots)
        twice = jax.grad(lambda *args: sum(map(jnp.vdot, slope(*args), dots)), (0, 1, 2))
        return value, slope(*args), jax.jvp(slope, args, dots), twice(*args)

    with jax.numpy_dtype_promotion("standard"):
        wanted = derivatives(PLAIN[f], *args)
    close(derivatives(functools.partial(f, chunk_size=4), *args), wanted, 1e-12)


@pytest.fixture(scope="module")
def on_one_device():
    """Value and gradients in float64, by all rows, without any block."""

    @functools.cache
    def run(f):
        with jax.enable_x64(True):
            args = jnp.asarray(X1), jnp.asarray(X2), jnp.asarray(0.5)

            def total(*args):
                return jnp.vdot(FACTORS, f(*args, jnp.asarray(LABELS), where=jnp.asarray(WHERE)))

            return jax.tree.map(np.asarray, jax.value_and_grad(total, (0, 1, 2))(*args))

    return run


@pytest.mark.parametrize(
    ("f", "check_vma"),
    [*((f, True) for f in PLAIN), (of_pairs, False)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_rows_of_eight_devices(f, check_vma, on_one_device, x64):
    grid, over = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,)), P("d")
    specs = over, over, P(), over, over, over

    @functools.partial(jax.shard_map, mesh=grid, in_specs=specs, out_specs=P(), check_vma=check_vma)
    def part(x1, x2, number, labels, where, factors):
        losses = f(x1, x2, number, labels, where=where, chunk_size=2, axis_name="d")
        return jax.lax.psum(jnp.vdot(factors, losses), "d")

    args = tuple(map(jnp.asarray, (X1, X2, 0.5, LABELS, WHERE, FACTORS)))
    program = hlo.lowered(jax.value_and_grad(part, (0, 1, 2)), *args).compile()
    close(program(*args), on_one_device(f), 1e-12)
    # What travels are embeddings and numbers of a device's own, one neighbour's at a time.
    talk = collectives(hlo.instructions(program))
    assert {i.op for i in talk} <= {"collective-permute", "all-reduce"}
    assert any(i.op == "collective-permute" for i in talk)
    assert max(hlo.added_up(program)) == 1


@SOFTMAX
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
@pytest.mark.parametrize("axes", [("a", "b"), "b"], ids=str)
def test_meshes(f, kind, axes, on_one_device, x64):
    grid = jax.make_mesh((2, 4), ("a", "b"), axis_types=(kind,) * 2)
    with jax.set_mesh(grid):
        x1, x2, labels, where, factors = (
            jax.device_put(x, NamedSharding(grid, P(axes)))
            for x in (X1, X2, LABELS, WHERE, FACTORS)
        )

        @jax.jit
        def run(*args):
            def total(*args):
                losses = f(*args, labels, where=where, chunk_size=2)
                return jnp.sum(factors * losses), losses

            return jax.value_and_grad(total, (0, 1, 2), has_aux=True)(*args)

        number = jax.device_put(0.5, NamedSharding(grid, P()))
        (value, losses), gradients = run(x1, x2, number)
    close((value, gradients), on_one_device(f), 1e-12)
    if kind == AxisType.Explicit:
        assert losses.sharding.spec == P(axes)
        assert gradients[0].sharding.spec[0] == axes


@pytest.mark.parametrize("spec", [P(("a", "b")), P("b"), P("a", "b"), P(None, "b")], ids=str)
@pytest.mark.parametrize("count", [40, 56], ids=["whole", "ragged blocks"])
def test_ntxent_on_explicit_axes(spec, count, monkeypatch, x64):
    """The rows stay where they are, in value and gradient, of both modes and to second order."""
    rng = np.random.default_rng(4)
    x, dot = rng.normal(size=(2, count, 4))
    labels, where = rng.integers(-4, 5, count), rng.uniform(size=count) < 0.8

    @jax.jit
    def found(x, dot, labels, where):
        def losses(x, temperature):
            return jaxloss.ntxent_per_example(x, labels, temperature, where=where)

        def mean(x, temperature):
            return jaxloss.ntxent(x, labels, temperature, where=where)

        args, dots = (x, jnp.asarray(0.5)), (dot, jnp.asarray(1.0))
        ahead = jax.jvp(losses, args, dots)
        over = jax.jvp(jax.value_and_grad(mean, (0, 1)), args, dots)
        return *ahead, over

    wanted = found(x, dot, labels, where)
    if count > 40:  # Two or three for each share of the rows.
        monkeypatch.setattr("jaxloss.core.contrastive.ntxent._BLOCK_SCORES", 200)
    grid = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(grid):
        of_rows = NamedSharding(grid, P(spec[0]))
        spread = (jax.device_put(y, NamedSharding(grid, spec)) for y in (x, dot))
        got = found(*spread, *(jax.device_put(y, of_rows) for y in (labels, where)))
    close(got, wanted, 1e-12)
    losses, losses_dot, ((_, (gradient, _)), (_, (gradient_dot, _))) = got
    assert losses.sharding.spec == losses_dot.sharding.spec == P(spec[0])
    assert gradient.sharding.is_equivalent_to(NamedSharding(grid, spec), 2)
    assert gradient_dot.sharding.is_equivalent_to(NamedSharding(grid, spec), 2)


@KINDS
@pytest.mark.parametrize("half", HALVES, ids=lambda h: h.__name__)
def test_halves(f, half):
    halves = [jnp.asarray(x, half) for x in (X1, X2)]
    wide = [np.asarray(x, np.float64) for x in halves]

    def run(f, x1, x2, factors):
        def total(*args):
            losses = f(*args, jnp.asarray(0.5), jnp.asarray(LABELS))
            return jnp.sum(factors.astype(losses.dtype) * losses), losses

        # As of a mean over so many that float16 could not hold what is not yet divided.
        gradients, losses = jax.grad(total, (0, 1), has_aux=True)(x1, x2)
        return losses, gradients

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        wanted = run(PLAIN[f], *map(jnp.asarray, wide), jnp.asarray(FACTORS) * 1e-3)
        wanted = jax.tree.map(np.asarray, wanted)
    losses, gradients = run(
        functools.partial(f, chunk_size=7), *halves, jnp.asarray(FACTORS) * 1e-3
    )
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, wanted[0], rtol=1e-5)
    for mine, reference in zip(gradients, wanted[1], strict=True):
        assert mine.dtype == half
        error = np.linalg.norm(np.float64(mine) - reference)
        assert error <= {jnp.bfloat16: 4e-3, jnp.float16: 5e-4}[half] * np.linalg.norm(reference)


@pytest.mark.parametrize("half", HALVES, ids=lambda h: h.__name__)
def test_products_of_halves_are_of_halves(half):
    x = jnp.zeros((8, 4), half)
    kind = {jnp.bfloat16: "bf16", jnp.float16: "f16"}[half]
    f = jax.grad(lambda x: jaxloss.info_nce_loss(x, x).sum())
    assert {*hlo.products(f, x)} == {(kind, kind, "f32")}
    with jax.default_matmul_precision("highest"):
        assert ("f32", "f32", "f32") in hlo.products(f, x)


@SOFTMAX
def test_no_array_of_all_similarities(f):
    count, width = 16384, 256
    x, labels = jnp.zeros((count, width)), jnp.zeros(count, int)

    def run(f):
        def mean(x1, x2):
            return jnp.mean(f(x1, x2, 0.07, labels))

        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return hlo.compiled(jax.value_and_grad(mean, (0, 1)), shape, shape)

    program = run(f)
    assert hlo.temporaries(program) <= {of_pairs: 64e6, of_labels: 72e6}[f]
    assert hlo.executed(program)
    assert not any(count * count == np.prod(i.dims, dtype=float) for i in hlo.executed(program))


def test_the_second_derivative_takes_blocks_too():
    x = jax.ShapeDtypeStruct((2048, 4), jnp.float32)

    def product(x, dot):
        slope = jax.grad(lambda x: jaxloss.info_nce_loss(x, x, chunk_size=64).sum())
        return jax.grad(lambda x: jnp.vdot(slope(x), dot))(x)

    assert hlo.temporaries(hlo.compiled(product, x, x)) < 2048 * 2048 * 4 / 2


def test_what_is_not_differentiated_costs_nothing():
    x = jnp.zeros((8, 4))
    both = hlo.products(jax.grad(lambda x, y: jaxloss.info_nce_loss(x, y).sum(), (0, 1)), x, x)
    one = hlo.products(jax.grad(lambda x: jaxloss.info_nce_loss(x, 0 * x + 1).sum()), x)
    fixed = hlo.products(jax.grad(lambda y: jaxloss.info_nce_loss(x, y).sum()), x)
    assert len(fixed) == len(both) - 1
    assert len(one) == len(both)


def test_confident_pairs_keep_their_digits():
    x = np.eye(4, dtype=np.float32) * 4  # The others are 16 / 0.5 below, with e^-32.
    for f in (of_pairs, of_rows):
        losses = f(x, x, 0.5, None)
        np.testing.assert_allclose(losses, oracle.info_nce_loss(x, x, temperature=0.5), rtol=1e-5)
        assert 0 < losses[0] < 1e-12
    twins = np.repeat(x, 2, 0)
    labels = np.repeat(np.arange(4), 2)
    losses = of_labels(twins, None, 0.5, labels)
    wanted = oracle.supervised_contrastive_loss(twins, labels, temperature=0.5)
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    assert 0 < losses[0] < 1e-12
    slope = jax.grad(lambda x: of_labels(x, None, 0.5, labels).sum())(twins)
    assert 0 < np.max(np.abs(slope)) < 1e-10


def test_pairs_alone_and_none():
    for count in (0, 1):
        x = jnp.ones((count, 3))
        for f in (of_pairs, of_rows, of_labels):
            losses, slope = jax.value_and_grad(
                lambda x, f=f: f(x, x, 0.5, jnp.zeros(len(x), int)).sum()
            )(x)
            assert losses == 0
            np.testing.assert_array_equal(slope, np.zeros((count, 3)))
    assert of_sigmoids(jnp.zeros((0, 3)), jnp.zeros((0, 3)), 1.0, None).shape == (0,)


@EVERY
def test_an_infinite_row_stays_with_its_own(f):
    x1, x2 = jnp.asarray(X1, jnp.float32), jnp.asarray(X2, jnp.float32)
    for bad in (jnp.inf, -jnp.inf, jnp.nan):
        where = jnp.arange(N) != 3
        losses = f(x1.at[3].set(bad), x2.at[3].set(bad), 0.5, LABELS, where=where)
        assert np.all(np.isfinite(losses))
    losses = of_rows(x1.at[3].set(jnp.inf), x2, 0.5, None)
    np.testing.assert_array_equal(np.delete(np.isfinite(losses), 3), np.ones(N - 1, bool))


@pytest.mark.parametrize(
    "labels",
    [
        np.array([-1, -1, -(2**31), 7, 7]),
        np.array([2**32 - 1, 2**32 - 1, 2**32 - 2, 5, 5], np.uint32),
        np.array([2**40, 2**40, 2**41, -(2**50), -(2**50)]),
    ],
    ids=["negative", "unsigned", "wide"],
)
def test_labels_are_only_compared(labels):
    x = jnp.asarray(X1[:5], jnp.float32)
    wanted = jaxloss.supervised_contrastive_loss(x, np.array([0, 0, 1, 2, 2]))
    np.testing.assert_array_equal(jaxloss.supervised_contrastive_loss(x, labels), wanted)
