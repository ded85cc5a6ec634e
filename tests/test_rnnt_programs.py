"""The transducer as a program: no scatter, little memory, devices that only add up."""

import functools
import math

import chex
import hlo
import jax
import jax.numpy as jnp
import numpy as np
from test_ctc_programs import KINDS, check_that_devices_only_add_up
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


@KINDS
def test_examples_on_several_devices_talk_only_to_add_up(kind):
    labels = np.random.default_rng(0).integers(1, 5, (8, 2)).astype(np.int32)
    args = normal(8, 4, 3, 5), np.zeros((8, 4), np.float32), labels, np.zeros((8, 2), np.float32)
    check_that_devices_only_add_up(jaxloss.rnnt_loss, args, kind)
