"""Every loss of (batch, sequence) examples on a mesh of both: results lie as the examples do."""

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import LOSSES, N
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

BATCHES, LENGTH = (4, 8, 16), 32
SPEC = P("data", "seq")
# What puts examples together has its own dimensions.
TOGETHER = {"binary_dice", "generalized_dice"}
PER_EXAMPLE = [loss for loss in LOSSES if not loss.mixes and loss.name not in TOGETHER]


def grid(kind):
    return jax.make_mesh((2, 4), ("data", "seq"), axis_types=(kind,) * 2)


def of_examples(loss):
    """Which arguments have a row for each example; the others are whole on every device."""
    return [loss.rowwise or (len(x) == N and i != 1) for i, x in enumerate(loss.inputs())]


def problem(loss, batch):
    """Losses and their gradient by every float, and arguments with (batch, LENGTH) examples."""
    rows = np.arange(batch * LENGTH).reshape(batch, LENGTH) % N
    args = [
        np.asarray(x)[rows] if own else np.asarray(x)
        for x, own in zip(loss.inputs(), of_examples(loss), strict=True)
    ]

    def f(*args):
        def total(*floats):
            given = list(args)
            for i, x in zip(loss.floats, floats, strict=True):
                given[i] = x
            losses = loss.losses(*given)
            return jnp.sum(losses), losses

        floats = [args[i] for i in loss.floats]
        gradients, losses = jax.grad(total, range(len(floats)), has_aux=True)(*floats)
        return losses, [
            g for i, g in zip(loss.floats, gradients, strict=True) if of_examples(loss)[i]
        ]

    return f, args


def laid(loss, args, mesh):
    """As shapes that say where they lie."""
    specs = [SPEC if own else P() for own in of_examples(loss)]
    return [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
        for x, spec in zip(args, specs, strict=True)
    ]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("loss", PER_EXAMPLE, ids=str)
def test_explicit_axes(loss, batch):
    f, args = problem(loss, batch)
    mesh = grid(AxisType.Explicit)
    with jax.set_mesh(mesh):
        for x in jax.tree.leaves(jax.eval_shape(f, *laid(loss, args, mesh))):
            assert (*x.sharding.spec, None, None)[:2] == tuple(SPEC)


@pytest.mark.parametrize("loss", PER_EXAMPLE, ids=str)
def test_automatic_axes(loss):
    f, args = problem(loss, 8)
    mesh = grid(AxisType.Auto)
    with jax.set_mesh(mesh):
        program = jax.jit(f).lower(*laid(loss, args, mesh)).compile()
    shapes = jax.eval_shape(f, *args)
    for sharding, x in zip(*map(jax.tree.leaves, (program.output_shardings, shapes)), strict=True):
        assert sharding.is_equivalent_to(NamedSharding(mesh, SPEC), x.ndim)
    assert hlo.gathering(program) == []
