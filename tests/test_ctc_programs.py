"""CTC as a program: no scatter, little memory, devices that only add up, every platform."""

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_ctc import core, functional, normal, spelled

import jaxloss


@pytest.mark.parametrize("door", [core, functional])
def test_no_scatter_over_classes(door):
    logits, labels = jnp.zeros((4, 40, 50)), jnp.ones((4, 6), jnp.int32)
    rest = labels, jnp.full(4, 40), jnp.full(4, 6)
    program = hlo.lowered(jax.grad(lambda x, *rest: door(x, *rest).sum()), logits, *rest)
    for stage in (program, program.compile(compiler_options=hlo.DEFAULTS)):
        assert hlo.operations(stage, "scatter") == 0


@pytest.mark.parametrize(
    ("shape", "most"), [((16, 1000, 128, 100), 60e6), ((8, 1500, 5000, 60), 300e6)], ids=str
)
def test_memory_does_not_grow_with_the_states(shape, most):
    examples, frames, classes, size = shape
    logits = jax.ShapeDtypeStruct((examples, frames, classes), jnp.float32)
    labels = jax.ShapeDtypeStruct((examples, size), jnp.int32)

    def f(logits, labels):
        return core(logits, labels, np.full(examples, frames), np.full(examples, size)).sum()

    assert hlo.temporaries(hlo.compiled(jax.value_and_grad(f), logits, labels)) < most


KINDS = pytest.mark.parametrize(
    "kind", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"]
)


def check_that_devices_only_add_up(losses, args, kind):
    """The mean of the losses and its gradient by the first argument, of examples on 8 devices."""
    f = jax.value_and_grad(lambda *args: losses(*args).mean())
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


@KINDS
@pytest.mark.parametrize("door", [core, functional])
def test_examples_on_several_devices_talk_only_to_add_up(door, kind):
    logits, labels = normal(16, 20, 6), spelled(16 * 4, 6).reshape(16, 4)
    args = (np.asarray(jax.nn.log_softmax(logits)), labels, np.full(16, 20), np.full(16, 4))
    check_that_devices_only_add_up(door, args, kind)


def test_alignment_for_every_platform():
    def f(x):
        return jnp.sum(jaxloss.ctc_alignment(x, jnp.zeros(6), jnp.array([1, 2]), jnp.zeros(2)) ** 2)

    platforms = ["cpu", "cuda", "tpu", "rocm"]
    lowered = export.export(jax.jit(jax.value_and_grad(f)), platforms=platforms)(jnp.zeros((6, 3)))
    assert set(lowered.platforms) == set(platforms)
