"""The transducer as a program: no scatter, little memory, devices that only add up."""

import functools
import math

import chex
import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_rnnt import normal, value_and_gradient, whole

import jaxloss


def test_a_traced_fastemit_does_not_recompile():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def f(x, fastemit):
        return jax.grad(lambda x: whole(x, np.array([1, 2]), fastemit=fastemit))(x)

    x = normal(3, 3, 4)
    assert not np.array_equal(f(x, 0.0), f(x, 1.0))


def test_no_scatter_and_little_memory():
    """Beside the gradient some 16 numbers for each node, or as many logits."""
    shape = (2, 60, 11, 32)
    logits = jax.ShapeDtypeStruct(shape, jnp.float32)
    labels = jax.ShapeDtypeStruct((2, 10), jnp.int32)
    program = hlo.lowered(functools.partial(value_and_gradient, whole), logits, labels)
    assert hlo.operations(program, "scatter") == 0
    compiled = program.compile(compiler_options=hlo.DEFAULTS)
    assert hlo.temporaries(compiled) < 0.75 * 4 * math.prod(shape)


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
def test_examples_on_several_devices_talk_only_to_add_up(kind):
    labels = np.random.default_rng(0).integers(1, 5, (8, 2)).astype(np.int32)
    args = normal(8, 4, 3, 5), np.zeros((8, 4), np.float32), labels, np.zeros((8, 2), np.float32)
    f = jax.value_and_grad(lambda *args: jaxloss.rnnt_loss(*args).mean())
    wanted = f(*args)
    grid = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(grid):
        spread = [jax.device_put(x, NamedSharding(grid, P("data"))) for x in args]
        program = hlo.compiled(f, *spread)
        got = program(*spread)
    for mine, reference in zip(got, wanted, strict=True):
        np.testing.assert_allclose(mine, reference, rtol=1e-5, atol=1e-7)
    assert got[1].sharding.spec[0] == "data"
    talk = hlo.collectives(hlo.instructions(program))
    assert [(i.type, i.op) for i in talk] == [("f32[]", "all-reduce")]
