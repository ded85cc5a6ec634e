"""Each probe of compiled programs finds a planted fault, and nothing where there is none."""

import hlo
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

X = jnp.ones((64, 512))
LABELS = jnp.zeros(64, jnp.int32)
HALF = jnp.ones((8, 16), jnp.bfloat16)


def put(x, labels):
    return x.at[jnp.arange(64), labels].add(1.0)


def picked(x, labels):
    return jnp.sum(jnp.where(jnp.arange(512)[None] == labels[:, None], x, 0), 1)


def test_scatters_and_gathers():
    assert hlo.scatters(put, X, LABELS) == 1
    assert hlo.scatters(jax.grad(lambda x, i: jnp.sum(jnp.take(x, i, 1))), X, LABELS) == 1
    assert hlo.gathers(lambda x, i: x[jnp.arange(64), i], X, LABELS) == 1
    assert hlo.scatters(picked, X, LABELS) == hlo.gathers(picked, X, LABELS) == 0
    # The compiled program as well: with other emitters XLA expands every scatter.
    assert hlo.operations(hlo.compiled(put, X, LABELS), "scatter") == 1
    assert hlo.operations(hlo.compiled(picked, X, LABELS), "scatter") == 0


def test_operands_of_products():
    def wide(x):
        return x.astype(jnp.float32) @ x.astype(jnp.float32).T

    def narrow(x):
        return jnp.matmul(x, x.T, preferred_element_type=jnp.float32)

    assert hlo.products(wide, HALF) == [("f32", "f32", "f32")]
    assert hlo.products(narrow, HALF) == [("bf16", "bf16", "f32")]
    assert hlo.products(jnp.sin, HALF) == []


def kept(x):
    """Stores the exponentials, for both a product and a sum need them."""
    e = jnp.exp(x)
    return jnp.sum(e @ e.T) / jnp.sum(e)


def passing(x):
    return jnp.sum(jnp.exp(x))


def test_stored_arrays():
    large, small = (hlo.compiled(f, X) for f in (kept, passing))
    assert hlo.stored(large, X.shape)
    assert hlo.stored(small, X.shape) == []
    assert hlo.stored(hlo.compiled(jnp.exp, X), X.shape) == []  # The result itself.
    assert hlo.temporaries(large) >= X.nbytes
    assert hlo.temporaries(small) < X.nbytes
    assert hlo.cost(large, "bytes accessed") > 2.5 * X.nbytes
    assert hlo.cost(small, "bytes accessed") < 1.1 * X.nbytes
    assert hlo.cost(large, "flops") > 2 * 64 * 64 * 512


def test_arrays_stored_in_loops():
    def f(x):
        return jax.lax.fori_loop(0, 3, lambda _, y: y + kept(x * y), 1.0)

    program = hlo.compiled(f, X)
    assert hlo.stored(program, X.shape)
    assert {i.computation for i in hlo.stored(program, X.shape)} <= {
        i.computation for i in hlo.in_loops(program)
    }
    assert hlo.in_loops(hlo.compiled(kept, X)) == []


def test_one_hots():
    def f(x, labels):
        hot = jax.nn.one_hot(labels, 512)
        return jnp.sum(jax.nn.log_softmax(x) * hot) + jnp.sum(jnp.sin(hot) @ hot.T)

    assert hlo.one_hots(hlo.compiled(f, X, LABELS), X.shape)
    assert hlo.one_hots(hlo.compiled(picked, X, LABELS), X.shape) == []
    assert hlo.one_hots(hlo.compiled(lambda x, _: kept(x), X, LABELS), X.shape) == []


def test_copies():
    moved = hlo.copies(hlo.compiled(lambda x: jnp.sort(x, 0), X.T))
    program = hlo.compiled(lambda x: jnp.swapaxes(x, 0, 1), X)
    assert {tuple(sorted(i.dims)) for i in hlo.copies(program)} >= {X.shape}
    assert all(i.dims for i in moved)
    assert hlo.copies(hlo.compiled(passing, X)) == []


def spread(f):
    grid = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    part = jax.shard_map(f, mesh=grid, in_specs=P("data"), out_specs=P("data"))
    return hlo.compiled(part, jnp.ones((8, 3)))


def whole(x):
    return x + jax.lax.all_gather(x, "data").sum((0, 1), keepdims=True)[0]


def test_collectives():
    program = spread(whole)
    assert [i.op for i in hlo.gathering(program)] == ["all-gather"]
    assert hlo.collectives(hlo.in_loops(program)) == []
    looped = spread(lambda x: jax.lax.fori_loop(0, 3, lambda _, x: whole(x), x))
    assert [i.op for i in hlo.collectives(hlo.in_loops(looped))] == ["all-gather"]
    added = spread(lambda x: x + jax.lax.psum(jnp.sum(x, 0, keepdims=True), "data"))
    assert hlo.gathering(added) == []
    assert hlo.added_up(added) == [3]
    assert hlo.collectives(hlo.instructions(spread(jnp.sin))) == []


def test_sequence():
    def found(f):
        return hlo.sequence(hlo.lowered(f, X).compile())

    assert found(jnp.sin) == found(lambda x: jnp.sin(x))
    assert found(jnp.sin) != found(jnp.cos)
    assert found(jnp.sin) != found(lambda x: jnp.sin(x[:2]))


def test_mentions():
    @jax.jit
    def checked(x):
        return jnp.sin(x)

    assert hlo.mentions(hlo.lowered(lambda x: 2 * checked(x), X), "check")
    assert not hlo.mentions(hlo.lowered(passing, X), "check")


def test_optimised_machine_code_is_read_alike():
    def text(program):
        return [(i.type, i.op, i.operands) for i in hlo.instructions(program)]

    def f(x, labels):
        return jax.lax.fori_loop(0, 3, lambda _, y: y + kept(x * y), jnp.sum(put(x, labels)))

    read, executed = (way(f, X, LABELS) for way in (hlo.compiled, hlo.optimised))
    assert text(read) == text(executed)
    assert hlo.temporaries(read) == hlo.temporaries(executed)
