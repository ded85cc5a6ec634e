"""Every loss of (batch, sequence) examples on a mesh of both: results lie as the examples do."""

import hlo
import jax
import numpy as np
import pytest
from cases import BY_NAME, LOSSES, N, losses_and_gradients
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss

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
        losses, gradients = losses_and_gradients(loss, args)
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


# Only where examples are merged, or cut into blocks, does it matter how many they are.
CUT = {"linear", "linear_smoothed", "ctc", "rnnt"}
SIZES = [(x, n) for x in PER_EXAMPLE for n in (BATCHES if x.name in CUT else BATCHES[1:2])]


@pytest.mark.parametrize(("loss", "batch"), SIZES, ids=[f"{loss}-{n}" for loss, n in SIZES])
def test_explicit_axes(loss, batch):
    f, args = problem(loss, batch)
    mesh = grid(AxisType.Explicit)
    with jax.set_mesh(mesh):
        for x in jax.tree.leaves(jax.eval_shape(f, *laid(loss, args, mesh))):
            assert (*x.sharding.spec, None, None)[:2] == tuple(SPEC)


@pytest.mark.parametrize("spec", [P(), P("data")], ids=["whole", "by data"])
@pytest.mark.parametrize("loss", PER_EXAMPLE, ids=str)
def test_explicit_axes_of_the_first_argument_spread_the_others(loss, spec):
    f, args = problem(loss, 8)
    mesh = grid(AxisType.Explicit)
    specs = [spec if own else P() for own in of_examples(loss)]
    first, *others = [
        x.update(sharding=NamedSharding(mesh, spec)) if position else x
        for position, (x, spec) in enumerate(zip(laid(loss, args, mesh), specs, strict=True))
    ]
    where = jax.ShapeDtypeStruct((8, LENGTH), bool, sharding=NamedSharding(mesh, P()))
    with jax.set_mesh(mesh):
        losses, gradients = jax.eval_shape(f, first, *others)
        masked = jax.eval_shape(
            lambda rows, *args: loss.losses(*args, where=loss.where(rows)), where, first, *others
        )
    for x in (losses, masked):
        assert (*x.sharding.spec, None, None)[:2] == tuple(SPEC)
    # A gradient lies as what it is of.
    expected = [SPEC, *specs[1:]]
    own = [expected[i] for i in loss.floats if of_examples(loss)[i]]
    for gradient, spec in zip(gradients, own, strict=True):
        assert (*gradient.sharding.spec, None, None)[:2] == (*spec, None, None)[:2]


def test_labels_that_every_device_holds():
    logits = np.random.default_rng(0).normal(size=(8, LENGTH, 5)).astype(np.float32)
    labels = np.arange(8 * LENGTH).reshape(8, LENGTH) % 5
    loss = jax.value_and_grad(
        lambda x, y: jaxloss.softmax_cross_entropy_with_integer_labels(x, y).sum()
    )
    wanted = jax.jit(loss)(logits, labels)
    mesh = grid(AxisType.Explicit)
    with jax.set_mesh(mesh):
        found = jax.jit(loss)(jax.device_put(logits, NamedSharding(mesh, SPEC)), labels)
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


@pytest.mark.parametrize("loss", PER_EXAMPLE, ids=str)
def test_vmap_over_explicit_axes(loss):
    f, args = problem(loss, 8)
    f = jax.vmap(f, [0 if own else None for own in of_examples(loss)])
    mesh = grid(AxisType.Explicit)
    with jax.set_mesh(mesh):
        for x in jax.tree.leaves(jax.eval_shape(f, *laid(loss, args, mesh))):
            assert (*x.sharding.spec, None, None)[:2] == tuple(SPEC)


MAPPED = ["cross_entropy", "multilabel_margin", "triplet", "ctc", "linear", "info_nce", "rnnt"]


@pytest.mark.parametrize("name", MAPPED)
def test_values_of_vmap_over_explicit_axes(name):
    loss = BY_NAME[name]
    args = [np.stack([x] * 8) for x in loss.inputs()]
    args[0] *= np.linspace(0.5, 1, 8, dtype=args[0].dtype).reshape(-1, *[1] * (args[0].ndim - 1))
    f = jax.vmap(jax.value_and_grad(lambda *x: loss.losses(*x).sum()))
    wanted = jax.jit(f)(*args)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        spread = [jax.device_put(x, NamedSharding(mesh, P("data"))) for x in args]
        found = jax.jit(f)(*spread)
    for x, y in zip(found, wanted, strict=True):
        assert x.sharding.spec[0] == "data"
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


SHARED = [("distance_2.0", 1), ("triplet", 0), ("cosine_similarity", 1), ("cosine_distance", 0)]


@pytest.mark.parametrize(("name", "shared"), [*SHARED, ("triplet", None), ("ctc", 3), ("rnnt", 3)])
def test_gradients_of_examples_beside_what_devices_share(name, shared):
    """Inside `jax.shard_map`, by what the devices do not hold alike."""
    loss = BY_NAME[name]
    axes = [None if i == shared else 0 for i in range(len(loss.inputs()))]
    args = [x[0] if i == shared else x for i, x in enumerate(loss.inputs())]
    own = next(i for i in loss.floats if i != shared)

    def f(*args):
        return jax.vmap(jax.grad(lambda *x: loss.losses(*x).sum(), own), axes)(*args)

    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    specs = tuple(P() if axis is None else P("data") for axis in axes)
    spread = jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=P("data"))
    np.testing.assert_allclose(jax.jit(spread)(*args), jax.jit(f)(*args), rtol=1e-5, atol=1e-6)


def test_vmap_of_statistics_over_explicit_axes():
    logits, labels = np.random.default_rng(1).normal(size=(8, 5)), np.arange(8) % 5
    f = jax.vmap(jax.value_and_grad(lambda x, y: jaxloss.softmax_statistics(x, y).log_prob))
    wanted = jax.jit(f)(logits.astype(np.float32), labels)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        spread = [jax.device_put(x, NamedSharding(mesh, P("data"))) for x in (logits, labels)]
        found = jax.jit(f)(*spread)
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)


@pytest.mark.parametrize("several", [(), (2,)])
def test_statistics_of_labels_that_every_device_holds(several):
    logits = np.random.default_rng(1).normal(size=(8, 5, 3)).astype(np.float32)
    labels = np.arange(8 * 3 * 2).reshape(8, 3, 2)[..., : 1 + len(several)] % 5
    labels = labels if several else labels[..., 0]

    def f(x):
        return jax.value_and_grad(
            lambda x: jaxloss.softmax_statistics(x, labels, axis=1).log_prob.sum()
        )(x)

    wanted = jax.jit(f)(logits)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        found = jax.jit(f)(jax.device_put(logits, NamedSharding(mesh, P("data"))))
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)


@pytest.mark.parametrize("loss", PER_EXAMPLE, ids=str)
def test_automatic_axes(loss):
    f, args = problem(loss, 8)
    mesh = grid(AxisType.Auto)
    with jax.set_mesh(mesh):
        lowered = hlo.lowered(f, *laid(loss, args, mesh))
    program, shapes = lowered.compile(), lowered.out_info
    for sharding, x in zip(*map(jax.tree.leaves, (program.output_shardings, shapes)), strict=True):
        assert sharding.is_equivalent_to(NamedSharding(mesh, SPEC), x.ndim)
    assert hlo.gathering(program) == []
