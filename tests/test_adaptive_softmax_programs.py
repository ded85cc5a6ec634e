"""Adaptive softmax as a program: blocks that are skipped, devices, any mix of clusters."""

import functools

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_adaptive_softmax import (
    EXAMPLES,
    FEATURES,
    INPUTS,
    LABELS,
    TAIL,
    compare,
    exact,
    gradients,
    log_probs,
    losses,
    parameters,
)


def rare_members(count=200):
    """Inputs, labels and a mask, of which one block holds all members of the first cluster."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, count)
    labels[17::40] = 6
    return rng.normal(size=(count, FEATURES)), labels, rng.random((count, 1)) < 0.8


def test_blocks_of_examples_outside_a_cluster_are_skipped(x64):
    inputs, labels, where = rare_members()
    given = parameters(jnp.float64)

    def mine(given, inputs):
        return losses(given, inputs, labels, where=where)

    def plain(given, inputs):
        return jnp.where(where[:, 0], -log_probs(given, inputs)[np.arange(200), labels], 0)

    args, tangents = (given, inputs), jax.tree.map(lambda x: jnp.sin(7 * x), (given, inputs))
    cotangent = np.cos(np.arange(200))

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(f):
        value, tangent = jax.jvp(f, args, tangents)
        gradient = jax.grad(lambda *args: f(*args) @ cotangent, (0, 1))
        _, second = jax.jvp(gradient, args, tangents)
        back = jax.grad(lambda *args: optax.tree.vdot(gradient(*args), tangents), (0, 1))
        return value, tangent, gradient(*args), second, back(*args)

    compare(derivatives(mine), derivatives(plain), 1e-11)
    found = jax.vmap(mine, (None, 0))(given, jnp.stack([inputs, 2 * inputs]))
    np.testing.assert_allclose(found, [plain(given, inputs), plain(given, 2 * inputs)], rtol=1e-11)


def test_what_is_skipped_is_not_computed():
    # NaN in the weights of a cluster reaches the blocks with a member, and no others.
    inputs, labels, _ = rare_members()
    given = parameters()
    broken = [(projection, jnp.full_like(weights, jnp.nan)) for projection, weights in TAIL]
    own = losses(given | {"tail": broken}, jnp.float32(inputs), labels)
    np.testing.assert_array_equal(np.isnan(own), labels == 6)
    slopes, _ = gradients(given | {"tail": broken}, jnp.float32(inputs), np.minimum(labels, 3))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(slopes))


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
def test_examples_sharded_over_devices(kind):
    inputs, labels, _ = rare_members()
    given, inputs = parameters(), jnp.float32(inputs)
    wanted = gradients(given, inputs, labels)
    grid = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(grid):
        by_data = NamedSharding(grid, P("data"))
        spread = (jax.device_put(x, by_data) for x in (inputs, labels))
        compare(gradients(given, *spread), wanted, 1e-5)


def test_examples_inside_shard_map():
    inputs, labels, _ = rare_members()
    given, inputs = parameters(), jnp.float32(inputs)
    part = jax.shard_map(
        lambda *args: jax.lax.psum(losses(*args).sum(), "data"),
        mesh=jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,)),
        in_specs=(P(), P("data"), P("data")),
        out_specs=P(),
    )
    found = jax.jit(jax.grad(part, (0, 1)))(given, inputs, labels)
    compare(found, gradients(given, inputs, labels), 1e-5)


def test_one_program_for_any_mix_of_clusters():
    traces = []

    @jax.jit
    def f(inputs, labels):
        traces.append(labels)
        return losses(parameters(), inputs, labels)

    inputs, wanted = jnp.asarray(INPUTS, jnp.float32), exact(INPUTS)
    for labels in (LABELS, 0 * LABELS, 0 * LABELS + 19, np.array([*range(7), 19])):
        np.testing.assert_allclose(f(inputs, labels), -wanted[EXAMPLES, labels], rtol=1e-6)
    assert len(traces) == 1


def test_every_platform_and_no_scatter():
    def f(given, inputs):
        return losses(given, inputs, LABELS).sum() + jnp.sum(log_probs(given, inputs))

    args = parameters(), jnp.asarray(INPUTS, jnp.float32)
    platforms = ["cpu", "cuda", "tpu", "rocm"]
    both = jax.jit(jax.value_and_grad(f, (0, 1)))
    lowered = export.export(both, platforms=platforms)(*args)
    assert set(lowered.platforms) == set(platforms)
    program = hlo.lowered(both, *args)
    assert hlo.operations(program, "dot_general")
    assert hlo.operations(program, "scatter") == 0
