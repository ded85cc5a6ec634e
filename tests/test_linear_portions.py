"""Linear losses of half operands on meshes, whose kernels' gradients are made in portions."""

# pyright: reportArgumentType=false
# Options in dictionaries lose their types.

import functools

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from test_linear_meshes import DOORS, KINDS, LAYOUTS, spread_over

import jaxloss
from jaxloss import functional as F
from jaxloss.core.linear import cutting

HALVES = {
    **DOORS,
    "divergence": lambda x, w, y: jaxloss.linear_softmax_divergence(
        x, w, *jax.lax.stop_gradient((-x, w))
    ).sum(),
    "statistics": lambda x, w, y: sum(
        part.sum() for part in jaxloss.linear_softmax_statistics(x, w, y)[:3]
    ),
}


def halves(rng):
    """Of 16 features, few enough that all logits' gradients are kept, and of more classes."""
    x, w = (jnp.asarray(rng.normal(size=(n, 16)), jnp.bfloat16) for n in (32, 136))
    return x, w, rng.integers(0, 136, 32).astype(np.int32)


def distance(got, wanted):
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    return np.linalg.norm(got - wanted) / np.linalg.norm(wanted)


@pytest.fixture(autouse=True, scope="module")
def portions():
    """Kernels' gradients are made of 12 classes at a time, which divide nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "_PORTION", 1)
        patch.setattr(cutting, "_LANES", 12)
        jax.clear_caches()
        yield
    jax.clear_caches()


@functools.cache
def in_float32(door):
    """Value and gradients on one device."""
    arrays = halves(np.random.default_rng(6))
    f = jax.jit(jax.value_and_grad(HALVES[door], (0, 1)))
    found = f(*(x.astype(np.float32) if x.ndim > 1 else x for x in arrays))
    return jax.tree.map(np.asarray, found)


# Explicit axes say how a kernel lies, and a sum and losses have rules of their own for that; else
# each two of layout, door and kind of axes.
SPREAD = [(layout, door, AxisType.Explicit) for layout in LAYOUTS for door in ("none", "mean")]
SPREAD += [("classes and features", door, AxisType.Auto) for door in ("none", "mean")]
SPREAD += [
    (layout, door, (AxisType.Explicit, AxisType.Auto)[(i + j) % 2])
    for i, layout in enumerate(LAYOUTS)
    for j, door in enumerate(("smoothed", "divergence", "statistics"))
]


@pytest.mark.parametrize(("layout", "door", "kind"), SPREAD, ids=str)
def test_half_kernels_of_several_devices(layout, door, kind):
    arrays, wanted = halves(np.random.default_rng(6)), in_float32(door)
    f = jax.value_and_grad(HALVES[door], (0, 1))
    inputs, kernel = LAYOUTS[layout]
    grid = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind,) * 2)
    with jax.set_mesh(grid):
        args = spread_over(grid, arrays, (inputs, kernel, P(inputs[0])))
        program = hlo.partitioned(f, *args)
        got = program(*args)
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-5)
    assert max(map(distance, got[1], wanted[1])) < 4e-3
    if kind == AxisType.Explicit:
        assert [g.sharding.spec for g in got[1]] == [inputs, kernel]
        assert all("while" not in i.computation for i in hlo.gathering(program))


@KINDS
@pytest.mark.parametrize("position", [0, 1], ids=["inputs", "kernel"])
def test_half_inputs_or_kernels_alone(position, kind):
    arrays = halves(np.random.default_rng(8))
    f = jax.grad(DOORS["mean"], position)
    wanted = jax.jit(f)(*(x.astype(np.float32) if x.ndim > 1 else x for x in arrays))
    grid = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind,) * 2)
    with jax.set_mesh(grid):
        got = jax.jit(f)(*spread_over(grid, arrays, (P("data"), P(), P("data"))))
    assert distance(got, wanted) < 4e-3


@pytest.mark.parametrize("door", DOORS)
def test_half_kernels_in_every_derivative(door):
    arrays = halves(np.random.default_rng(7))
    wide = tuple(x.astype(np.float32) for x in arrays[:2])
    grid = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)

    def derivatives(x, w, y):
        def loss(x, w):
            return DOORS[door](x, w, y)

        def along(x, w):
            return jax.jvp(loss, (x, w), (jnp.cos(x), jnp.sin(w)))[1]

        def squares(x, w):
            slopes = jax.grad(loss, (0, 1))(x, w)
            return sum(jnp.sum(jnp.square(slope.astype(jnp.float32))) for slope in slopes)

        return along(x, w), jax.grad(along, (0, 1))(x, w), jax.grad(squares, (0, 1))(x, w)

    wanted = jax.jit(derivatives)(wide[0], wide[1], arrays[2])
    with jax.set_mesh(grid):
        got = jax.jit(derivatives)(
            *spread_over(grid, arrays, (P("data", None), P("model", "data"), P("data")))
        )
    got, wanted = map(jax.tree.leaves, (got, wanted))
    assert max(map(distance, got, wanted)) < 2e-2


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_half_kernels_in_a_mapped_function(scale):
    x, w, y = halves(np.random.default_rng(8))
    grid = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    @jax.shard_map(mesh=grid, in_specs=(P("data"), P("model"), P("data")), out_specs=P("data"))
    def losses(x, w, y):
        return jaxloss.linear_softmax_cross_entropy(x, w, y, axis_name="model")

    def total(losses, x, w):
        return scale * jnp.sum(losses(x, w, y) * jnp.linspace(1, 2, len(x)))

    f = jax.grad(functools.partial(total, losses), (0, 1))
    program = hlo.optimised(f, x, w)
    whole = functools.partial(total, jaxloss.linear_softmax_cross_entropy)
    wanted = jax.jit(jax.grad(whole, (0, 1)))(*(x.astype(np.float32) for x in (x, w)))
    assert max(map(distance, program(x, w), wanted)) < 4e-3
    # What the devices add up is a portion of the kernel's gradient.
    assert 12 * 16 in hlo.added_up(program)
    assert max(hlo.added_up(program)) < 136 // 4 * 16


def test_half_kernels_in_a_mapped_mean():
    x, w, y = halves(np.random.default_rng(8))
    grid = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    @jax.shard_map(mesh=grid, in_specs=(P("data"), P("model"), P("data")), out_specs=P())
    def mean(x, w, y):
        return jax.lax.pmean(F.linear_cross_entropy(x, w, y, axis_name="model"), "data")

    f = jax.grad(mean, (0, 1))
    program = hlo.optimised(f, x, w, y)
    # The gradient is made along with the loss, and the kernel's of a portion at a time.
    assert len(hlo.products(f, x, w, y)) == 3
    assert max(hlo.added_up(program)) < 136 // 4 * 16
    alone = jax.jit(jax.grad(F.linear_cross_entropy, (0, 1)))
    wanted = alone(*(x.astype(np.float32) for x in (x, w)), y)
    assert max(map(distance, program(x, w, y), wanted)) < 4e-3
