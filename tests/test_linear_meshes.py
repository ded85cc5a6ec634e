"""Linear cross entropy on meshes: what is computed, what travels, and where results lie."""

# pyright: reportArgumentType=false
# Options in dictionaries lose their types.

import functools
from typing import Any

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss
from jaxloss import functional as F

C, D = 6, 5
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(C, D))
KINDS = pytest.mark.parametrize(
    "kind", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"]
)
DOORS: dict[str, Any] = {
    "none": lambda x, w, y, **o: jaxloss.linear_softmax_cross_entropy(x, w, y, **o).sum(),
    "smoothed": lambda x, w, y, **o: jaxloss.linear_softmax_cross_entropy(
        x, w, y, label_smoothing=0.1, z_loss=1e-4, **o
    ).sum(),
    "mean": F.linear_cross_entropy,
}


def compiled(f, *args):
    return hlo.partitioned(jax.value_and_grad(f, (0, 1)), *args)


def alone(f, *args):
    """As one device has it."""
    return jax.jit(jax.value_and_grad(f, (0, 1)))(*args)


@functools.cache
def alone_through(door):
    return jax.tree.map(np.asarray, alone(DOORS[door], *sharded(AxisType.Auto)[1]))


@functools.partial(jax.jit, static_argnums=0)
def derivatives(f, floats, rest):
    """Value, gradient, derivative along a direction, and the gradient of that."""

    def along(floats):
        return jax.jvp(lambda x: f(x, rest), (floats,), (jax.tree.map(jnp.cos, given),))[1]

    given = floats
    return jax.value_and_grad(f)(floats, rest), *jax.value_and_grad(along)(floats)


def spread_over(grid, arrays, specs):
    return [jax.device_put(a, NamedSharding(grid, s)) for a, s in zip(arrays, specs, strict=True)]


def check_close(got, wanted, rtol=1e-5):
    for mine, reference in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(
            np.asarray(mine, np.float32),
            np.asarray(reference, np.float32),
            rtol=rtol,
            atol=rtol / 10,
        )


def sharded(kind):
    """Arrays on a mesh of two axes: examples over one, classes over the other."""
    rng = np.random.default_rng(4)
    arrays = rng.normal(size=(64, 16)), rng.normal(size=(128, 16)), rng.integers(0, 128, 64)
    arrays = tuple(a.astype(np.float32 if a.dtype.kind == "f" else np.int32) for a in arrays)
    grid = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind,) * 2)
    specs = P("data", None), P("model", None), P("data")
    return grid, arrays, specs


def check_sharded(got, wanted, program):
    check_close(got, wanted)
    assert hlo.gathering(program) == []
    # What travels belongs to examples: a block's sums, and its part of the inputs' gradient.
    assert 0 < max(hlo.added_up(program)) <= 32 * 16


@KINDS
@pytest.mark.parametrize("door", DOORS)
def test_classes_and_examples_on_several_devices(door, kind):
    grid, arrays, specs = sharded(kind)
    f = functools.partial(DOORS[door], chunk_size=32)
    with jax.set_mesh(grid):
        args = spread_over(grid, arrays, specs)
        program = compiled(f, *args)
        got = program(*args)
    assert [g.sharding.spec[0] for g in got[1]] == ["data", "model"]
    check_sharded(got, alone_through(door), program)


@pytest.mark.parametrize("door", ["core", "functional"])
def test_classes_over_a_named_axis(door):
    grid, arrays, specs = sharded(AxisType.Auto)
    options = {"label_smoothing": 0.1} | ({"z_loss": 1e-2} if door == "core" else {})

    def mean(x, w, y, **more):
        if door == "functional":
            return F.linear_cross_entropy(x, w, y, **options, **more)
        return jaxloss.linear_softmax_cross_entropy(x, w, y, **options, **more).mean()

    @jax.shard_map(mesh=grid, in_specs=specs, out_specs=P())
    def part(x, w, y):
        return jax.lax.pmean(mean(x, w, y, chunk_size=8, axis_name="model"), "data")

    program = compiled(part, *arrays)
    check_sharded(program(*arrays), alone(mean, *arrays), program)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_named_axis_in_torch_function(reduction):
    grid, (x, w, y), specs = sharded(AxisType.Auto)
    y = np.where(np.arange(64) % 3, y, -100)
    args = x, w, y, np.linspace(-1, 1, 128, dtype=np.float32), np.linspace(0, 2, 128)
    args = (*args[:4], args[4].astype(np.float32))

    def loss(x, w, y, bias, weight, **more):
        options = {"linear_bias": bias, "weight": weight, "reduction": reduction}
        return jnp.sum(F.linear_cross_entropy(x, w, y, **options, **more))

    # All examples on each device, so that a mean is that of them all.
    specs = P(), specs[1], P(), P("model"), P("model")
    named = functools.partial(loss, axis_name="model")
    mapped = jax.shard_map(named, mesh=grid, in_specs=specs, out_specs=P())
    moving = 0, 1, 3
    got = jax.jit(jax.value_and_grad(mapped, moving))(*args)
    check_close(got, jax.jit(jax.value_and_grad(loss, moving))(*args))


@pytest.mark.parametrize("way", ["explicit", "named"])
def test_probabilities_over_classes_of_several_devices(way):
    grid, (x, w, _), _ = sharded(AxisType.Explicit if way == "explicit" else AxisType.Auto)
    y = np.random.default_rng(5).dirichlet(np.ones(128), 64).astype(np.float32)
    specs = P(), P("model"), P(None, "model")
    wanted = jax.jit(jax.value_and_grad(F.linear_cross_entropy, (0, 1, 2)))(x, w, y)
    f = F.linear_cross_entropy
    if way == "named":
        named = functools.partial(f, axis_name="model")
        f = jax.shard_map(named, mesh=grid, in_specs=specs, out_specs=P())
    with jax.set_mesh(grid):
        args = spread_over(grid, (x, w, y), specs)
        check_close(jax.jit(jax.value_and_grad(f, (0, 1, 2)))(*args), wanted)


@pytest.mark.parametrize("door", DOORS)
def test_data_parallel_gradients_are_added_up_once(door):
    grid, arrays, specs = sharded(AxisType.Auto)

    @jax.shard_map(mesh=grid, in_specs=(specs[0], P(), specs[2]), out_specs=P())
    def part(x, w, y):
        return jax.lax.pmean(DOORS[door](x, w, y, chunk_size=16), "data")

    program = compiled(part, *arrays)
    share = 1 if door == "mean" else 2
    check_close(program(*arrays), jax.tree.map(lambda x: x / share, alone_through(door)))
    assert hlo.added_up(program).count(128 * 16) == 1


@KINDS
@pytest.mark.parametrize("batch", [4, 8, 16])
def test_sequences_stay_where_they_are(batch, kind):
    inputs = RNG.normal(size=(batch, 16, D)).astype(np.float32)
    kernel, labels = KERNEL.astype(np.float32), RNG.integers(0, C, (batch, 16))
    args, spec = (inputs, kernel, labels), P("data", "time")
    specs = spec, P(), spec

    def loss(*args):
        losses = jaxloss.linear_softmax_cross_entropy(*args, chunk_size=2)
        return jaxloss.reduce(losses), losses

    f = jax.value_and_grad(loss, (0, 1), has_aux=True)
    wanted = jax.jit(f)(*args)
    grid = jax.make_mesh((2, 4), ("data", "time"), axis_types=(kind,) * 2)
    with jax.set_mesh(grid):
        spread = spread_over(grid, args, specs)
        program = hlo.partitioned(f, *spread)
        got = program(*spread)
        if kind == AxisType.Explicit:
            (_, losses), _ = jax.eval_shape(f, *spread)
            assert losses.sharding.spec == spec
    assert hlo.gathering(program) == []
    assert got[0][1].sharding.is_equivalent_to(NamedSharding(grid, spec), 2)
    assert got[1][0].sharding.is_equivalent_to(NamedSharding(grid, spec), 3)
    check_close(got, wanted)


LAYOUTS = {
    "classes": (P("data", None), P("model", None)),
    "features": (P("data", None), P(None, "data")),
    "classes over all": (P("data", None), P(("data", "model"), None)),
    "classes and features": (P("data", None), P("model", "data")),
    "examples over all": (P(("data", "model"), None), P(None, "model")),
    "features of the inputs": (P(None, "model"), P(None, "model")),
    "nothing": (P(None, None), P(None, None)),
}


@pytest.mark.parametrize("door", ["none", "mean"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_explicit_axes_laid_in_any_way(layout, door):
    grid, arrays, _ = sharded(AxisType.Explicit)
    inputs, kernel = LAYOUTS[layout]
    specs = inputs, kernel, P(inputs[0])
    f = functools.partial(DOORS[door], chunk_size=32)
    with jax.set_mesh(grid):
        args = spread_over(grid, arrays, specs)
        program = compiled(f, *args)
        got = program(*args)
    assert [g.sharding.spec for g in got[1]] == [inputs, kernel]
    check_close(got, alone_through(door))
    # A kernel travels once, and not in every turn of a loop.
    assert all("while" not in i.computation for i in hlo.gathering(program))


# Over what the classes, the features of the kernel, and the examples are spread.
NAMED = {
    "features over data": (None, "data", ("data", "model")),
    "classes over model, features over data": ("model", "data", ("data",)),
    "features over both": (None, ("data", "model"), ("data", "model")),
    "examples over none": ("model", "data", ()),
    "examples over another": (None, "model", ("data",)),
}
WITH_FEATURES: dict[str, Any] = {
    "mean": F.linear_cross_entropy,
    "each": lambda *args, **o: jaxloss.linear_softmax_cross_entropy(*args, **o).mean(),
    "statistics": lambda *args, **o: sum(
        x.mean() for x in jaxloss.linear_softmax_statistics(*args, **o)[:3]
    ),
    "divergence": lambda x, w, y, **o: jaxloss.linear_softmax_divergence(
        x, w, jnp.sin(x), jnp.cos(w), **o
    ).mean(),
}
# Unchecked, the rules ask whether there are classes over an axis, and nothing else of the layout.
UNCHECKED = [
    *((door, "classes over model, features over data") for door in WITH_FEATURES),
    ("mean", "features over data"),
    ("each", "features over both"),
    ("statistics", "examples over another"),
    ("divergence", "examples over none"),
]


@functools.cache
def gathered(door):
    """Arguments, and what is wanted of them."""
    rng = np.random.default_rng(6)
    x, w = (rng.normal(size=size).astype(np.float32) for size in ((16, 8), (12, 8)))
    args = (x, w), rng.integers(0, 12, 16).astype(np.int32)
    wanted = derivatives(lambda floats, labels: WITH_FEATURES[door](*floats, labels), *args)
    return args, jax.tree.map(np.asarray, wanted)


@pytest.mark.parametrize(
    ("door", "layout", "checked"),
    [(door, layout, True) for door in WITH_FEATURES for layout in NAMED]
    + [(door, layout, False) for door, layout in UNCHECKED],
)
def test_features_over_a_named_axis(door, layout, checked):
    """As `jax.lax.all_gather` before the call."""
    loss, (classes, features, examples) = WITH_FEATURES[door], NAMED[layout]
    args, wanted = gathered(door)
    grid = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    @jax.shard_map(
        mesh=grid,
        in_specs=((P(examples), P(classes, features)), P(examples)),
        out_specs=P(),
        check_vma=checked,
    )
    def mapped(floats, labels):
        own = loss(*floats, labels, axis_name=classes, features_axis_name=features)
        varying = jax.typeof(own).mat.varying if checked else grid.axis_names
        return jax.lax.pmean(own, tuple(varying))

    check_close(derivatives(mapped, *args), wanted, 3e-5)


def test_features_that_cannot_be_spread_evenly_are_named():
    grid = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))

    def mapped(x, w, y):
        specs = P(), P(None, "data"), P()
        loss = functools.partial(F.linear_cross_entropy, features_axis_name="data")
        return jax.shard_map(loss, mesh=grid, in_specs=specs, out_specs=P("data"))(x, w, y)

    shapes = jnp.ones((2, 6)), jnp.ones((3, 4)), jnp.zeros(2, jnp.int32)
    with pytest.raises(ValueError, match=r"`features_axis_name` must divide the 6 features"):
        mapped(*shapes)
    whole = jnp.ones((2, 8)), jnp.ones((3, 4)), jnp.zeros(2, jnp.int32)
    with pytest.raises(
        ValueError, match=r"`linear_weight` must have shape \(C, 2\).* got \(3, 1\)"
    ):
        mapped(*whole)


def test_blocks_need_not_divide_what_a_device_has():
    arrays = RNG.normal(size=(12, 3)), RNG.normal(size=(8, 3)), RNG.integers(0, 8, 12)
    arrays = [np.asarray(a, np.float32 if a.dtype.kind == "f" else np.int32) for a in arrays]
    grid = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    f = jax.value_and_grad(functools.partial(DOORS["none"], chunk_size=4), (0, 1))
    with jax.set_mesh(grid):
        got = jax.jit(f)(*spread_over(grid, arrays, (P("data", None), P(), P("data"))))
    check_close(got, jax.jit(f)(*arrays))


EVERYTHING = {
    "bias": P("model"),
    "class_weights": P("model"),
    "label_smoothing": P(),
    "z_loss": P(),
}


def everything(labels):
    """Arguments by name, all of them differentiated but labels that are indices."""
    rng = np.random.default_rng(5)
    floats = {
        "inputs": rng.normal(size=(8, 4)),
        "kernel": rng.normal(size=(12, 4)),
        "bias": rng.normal(size=12),
        "class_weights": rng.uniform(0.5, 2, 12),
        "label_smoothing": 0.2,
        "z_loss": 0.05,
    }
    specs = {name: P("model") if np.ndim(x) else P() for name, x in floats.items()}
    specs |= {"inputs": P("data", None), "kernel": P("model", None)}
    if labels == "probabilities":
        floats["labels"] = rng.dirichlet(np.ones(12), 8)
        specs["labels"] = P("data", "model")
    floats = {name: np.asarray(x, np.float32) for name, x in floats.items()}
    return floats, specs, {"labels": rng.integers(0, 12, 8)} if labels == "indices" else {}


def weighted(floats, **rest):
    options = floats | rest
    args = [options.pop(name) for name in ("inputs", "kernel", "labels")]
    losses = jaxloss.linear_softmax_cross_entropy(*args, chunk_size=4, **options)
    return losses * jnp.linspace(1, 2, len(losses))


def loss_of_all(floats, rest):
    return jnp.sum(weighted(floats, **rest))


def loss_of_parts(floats, rest):
    """As two devices have it, each with half of the examples."""
    own = ("inputs", "labels")

    def part(i):
        return ({n: jnp.split(x, 2)[i] if n in own else x for n, x in d.items()} for d in given)

    given = floats, rest
    return loss_of_all(*part(0)) + loss_of_all(*part(1))


@functools.cache
def on_one_device(f, labels):
    floats, _, rest = everything(labels)
    return jax.tree.map(np.asarray, derivatives(f, floats, rest))


@pytest.mark.parametrize("way", ["explicit", "named", "unchecked"])
@pytest.mark.parametrize("labels", ["indices", "probabilities"])
def test_gradients_of_everything(labels, way):
    floats, specs, rest = everything(labels)
    kind = AxisType.Explicit if way == "explicit" else AxisType.Auto
    grid = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind,) * 2)

    @jax.shard_map(
        mesh=grid,
        in_specs=(specs, {name: P("data") for name in rest}),
        out_specs=P("data"),
        check_vma=way == "named",
    )
    def spread(floats, rest):
        return weighted(floats, **rest, axis_name="model")

    on_mesh = loss_of_all if way == "explicit" else lambda *args: jnp.sum(spread(*args))
    with jax.set_mesh(grid):
        laid = {n: jax.device_put(x, NamedSharding(grid, specs[n])) for n, x in floats.items()}
        there = {n: jax.device_put(x, NamedSharding(grid, P("data"))) for n, x in rest.items()}
        got, along, curved = derivatives(on_mesh, laid, there)
    alone = loss_of_all if way == "explicit" else loss_of_parts
    wanted, wanted_along, wanted_curved = on_one_device(alone, labels)
    check_close(got, wanted, 3e-5)
    check_close(along, wanted_along, 3e-5)
    check_close(curved, wanted_curved, 1e-4)
