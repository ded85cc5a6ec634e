"""What the compiler gets: every platform, no scatter, no class-sized one-hot, no all-gather."""

import functools
import re

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BY_NAME, LOSSES, OUTERMOST, UNREDUCED, N, scalar
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss
from jaxloss import functional as F

PLATFORMS = ["cpu", "cuda", "tpu", "rocm"]


# Their loops over blocks of examples need to know how many; the adaptive softmax's likewise.
IN_BLOCKS = {"linear", "linear_smoothed"}
IN_BLOCKS |= {"info_nce", "sigmoid_contrastive", "supervised_contrastive"}
SYMBOLIC = [(loss, door) for loss, door in OUTERMOST if loss.name not in IN_BLOCKS]
KNOWN = [(loss, door) for loss, door in OUTERMOST if loss.name in IN_BLOCKS]


@pytest.mark.parametrize(("loss", "door"), KNOWN, ids=[f"{x}-{door}" for x, door in KNOWN])
def test_every_platform(loss, door):
    args = loss.inputs()
    f, floats = scalar(loss, door, args)
    lowered = export.export(
        jax.jit(jax.value_and_grad(f, range(len(floats)))), platforms=PLATFORMS
    )(*floats)
    assert set(lowered.platforms) == set(PLATFORMS)


@pytest.mark.parametrize(("loss", "door"), SYMBOLIC, ids=[f"{x}-{door}" for x, door in SYMBOLIC])
def test_any_number_of_examples_on_every_platform(loss, door):
    args = loss.inputs()
    (size,) = export.symbolic_shape("n")
    specs = [jax.ShapeDtypeStruct([size if n == N else n for n in x.shape], x.dtype) for x in args]

    def mean(*args):
        if door == "functional" and loss.torch not in UNREDUCED:
            return loss.functional(*args, reduction="mean")
        return jaxloss.reduce(loss.doors()[door](*args))

    f = jax.jit(jax.value_and_grad(mean, loss.floats))
    exported = export.export(f, platforms=PLATFORMS)(*specs)
    assert set(exported.platforms) == set(PLATFORMS)
    fewer = [np.asarray(x)[: N - 2] for x in args]
    both = jax.jit(lambda *args: (exported.call(*args), f(*args)))
    (value, gradients), (wanted, slopes) = both(*fewer)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    for mine, slope in zip(gradients, slopes, strict=True):
        np.testing.assert_allclose(mine, slope, rtol=1e-5, atol=1e-7)


# With files of their own.
OTHERS = {"reduce", "ctc_alignment", "adaptive_log_softmax", "adaptive_softmax_cross_entropy"}
OTHERS |= {"ctc_forced_alignment", "ctc_greedy_decode", "ctc_spans", "edit_distance"}
OTHERS |= {"forced_align", "rnnt_loss_of_sum"}
OTHERS |= {
    "ctc_loss_with_forward_probs",
    "make_fenchel_young_loss",
    "ntxent",
    "smooth_labels",
    "Statistics",
}
X, KERNEL, CHOICES = jnp.ones((6, 4)), jnp.ones((5, 4)), jnp.zeros((6, 2), jnp.int32)
BESIDE_THE_LOSS = {
    "softmax_statistics": lambda x: jaxloss.softmax_statistics(x, CHOICES)[:3],
    "linear_softmax_statistics": lambda x: jaxloss.linear_softmax_statistics(
        x, KERNEL, CHOICES, chunk_size=2
    )[:3],
    "linear_softmax_divergence": lambda x: jaxloss.linear_softmax_divergence(
        x, KERNEL, x, 2 * KERNEL, chunk_size=2
    ),
}


@pytest.mark.parametrize("name", BESIDE_THE_LOSS)
def test_beside_the_loss(name):
    def total(x):
        return sum(jnp.sum(found) for found in jax.tree.leaves(BESIDE_THE_LOSS[name](x)))

    f = jax.jit(jax.value_and_grad(total))
    exported = export.export(f, platforms=PLATFORMS)(X)
    assert set(exported.platforms) == set(PLATFORMS)
    (_, gradient), (_, wanted) = jax.jit(lambda x: (exported.call(x), f(x)))(X)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-6)
    assert hlo.scatters(f, X) == 0


def test_every_public_function_is_in_the_table():
    for module, rows in (
        (jaxloss, {loss.core for loss in LOSSES}),
        (F, {loss.torch for loss in LOSSES}),
    ):
        public = {
            name
            for name, value in vars(module).items()
            if callable(value) and not name.startswith("_")
        }
        assert public - rows - OTHERS - set(BESIDE_THE_LOSS) == set()
    assert set(
        export.export(jax.jit(jax.grad(jaxloss.reduce)), platforms=PLATFORMS)(jnp.ones(3)).platforms
    ) == set(PLATFORMS)


INTEGER_LABELS = [
    "cross_entropy",
    "cross_entropy_smoothed",
    "nll",
    "multi_margin",
    "multi_margin_squared",
    "multilabel_margin",
]


@pytest.mark.parametrize("name", INTEGER_LABELS)
@pytest.mark.parametrize("door", ["core", "functional"])
def test_no_scatter(name, door):
    loss = BY_NAME[name]
    f, floats = scalar(loss, door, loss.inputs())
    program = hlo.lowered(jax.value_and_grad(f), *floats)
    assert hlo.operations(program, "scatter") == 0
    compiled = program.compile(compiler_options=hlo.DEFAULTS)
    assert hlo.operations(compiled, "scatter") == 0


@pytest.mark.parametrize(
    "f",
    [
        F.cross_entropy,
        functools.partial(F.cross_entropy, label_smoothing=0.1),
        F.nll_loss,
        F.multi_margin_loss,
        functools.partial(F.multi_margin_loss, p=2),
    ],
    ids=["cross_entropy", "smoothed", "nll", "multi_margin", "multi_margin_squared"],
)
def test_no_one_hot_is_stored(f):
    logits, labels = jnp.zeros((64, 4096)), jnp.zeros(64, jnp.int32)
    assert hlo.one_hots(hlo.compiled(jax.value_and_grad(f), logits, labels), logits.shape) == []


@pytest.mark.parametrize(
    "f", [F.cross_entropy, F.nll_loss, F.multi_margin_loss], ids=lambda f: f.__name__
)
def test_at_most_one_array_of_the_logits_size_besides_the_gradient(f):
    logits, labels = jnp.zeros((64, 4096)), jnp.zeros(64, jnp.int32)
    program = hlo.compiled(jax.value_and_grad(f), logits, labels)
    assert hlo.temporaries(program) < 1.1 * logits.nbytes


def mesh(kind):
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind,) * 2)


LOGITS = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
LABELS = np.arange(8, dtype=np.int32)
SHARDED = {
    "core": lambda x, y: jaxloss.softmax_cross_entropy_with_integer_labels(x, y).mean(),
    "core with everything": lambda x, y: jaxloss.softmax_cross_entropy_with_integer_labels(
        x, y, label_smoothing=0.1, z_loss=1e-2, class_weights=jnp.arange(1.0, 17.0)
    ).mean(),
    "functional": F.cross_entropy,
    "functional with everything": functools.partial(
        F.cross_entropy,
        weight=np.arange(1, 17, dtype=np.float32),
        label_smoothing=0.1,
        ignore_index=3,
    ),
    "nll": F.nll_loss,
    "multi margin": F.multi_margin_loss,
}


SUMS = {"all-reduce", "collective-permute"}  # The rest would move the logits.


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
@pytest.mark.parametrize("name", SHARDED)
def test_sharded_classes(name, kind):
    f = jax.value_and_grad(SHARDED[name])
    wanted = jax.jit(f)(LOGITS, LABELS)
    grid = mesh(kind)
    with jax.set_mesh(grid):
        logits = jax.device_put(LOGITS, NamedSharding(grid, P("data", "model")))
        labels = jax.device_put(LABELS, NamedSharding(grid, P("data")))
        program = hlo.partitioned(f, logits, labels)
        value, gradient = program(logits, labels)
    np.testing.assert_allclose(value, wanted[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, wanted[1], rtol=1e-5, atol=1e-7)
    # The gradient of nll_loss is made of the labels alone, which are not sharded over the classes.
    spec = P("data") if (name, kind) == ("nll", AxisType.Auto) else P("data", "model")
    assert gradient.sharding.spec == spec
    assert {i.op for i in hlo.collectives(hlo.instructions(program))} <= SUMS
    assert hlo.added_up(program)


@pytest.mark.parametrize(
    "f",
    [jaxloss.softmax_cross_entropy_with_integer_labels, jaxloss.softmax_cross_entropy],
    ids=["integer labels", "probabilities"],
)
def test_classes_sharded_over_a_named_axis(f):
    grid = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))
    weights = np.linspace(0.5, 2, 16, dtype=np.float32)
    integers = f is jaxloss.softmax_cross_entropy_with_integer_labels
    labels = LABELS.copy() if integers else np.eye(16, dtype=np.float32)[LABELS]
    if integers:
        labels[5] = 16  # A bad label is bad on every device.
    options = {"label_smoothing": 0.1, "z_loss": 1e-2}

    def whole(x, y, w):
        return jnp.nansum(f(x, y, class_weights=w, **options))

    @jax.shard_map(
        mesh=grid,
        in_specs=(P(None, "model"), P() if integers else P(None, "model"), P("model")),
        out_specs=P(),
    )
    def part(x, y, w):
        return jnp.nansum(f(x, y, class_weights=w, axis_name="model", **options))

    args = (LOGITS, labels, weights)
    spread = hlo.partitioned(jax.value_and_grad(part), *args)
    value, gradient = spread(*args)
    wanted = jax.jit(jax.value_and_grad(whole))(*args)
    np.testing.assert_allclose(value, wanted[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, wanted[1], rtol=1e-5, atol=1e-6)
    assert {i.op for i in hlo.collectives(hlo.instructions(spread))} == {"all-reduce"}


SCORES, CLASSES = np.zeros((64, 16), np.float32), np.zeros(64, int)
PER_EXAMPLE = [
    (jaxloss.softmax_cross_entropy_with_integer_labels, CLASSES),
    (jaxloss.softmax_statistics, CLASSES),
    (jaxloss.softmax_cross_entropy, SCORES),
    (jaxloss.poly_loss_cross_entropy, SCORES),
    (jaxloss.pairwise_distance, SCORES),
    (jaxloss.cosine_similarity, SCORES),
    (jaxloss.cosine_distance, SCORES),
]


@pytest.mark.parametrize(("f", "y"), PER_EXAMPLE, ids=[f.__name__ for f, _ in PER_EXAMPLE])
def test_what_is_computed_for_each_example_has_no_axis_of_size_1(f, y):
    """With one a CPU takes one number at a time."""

    def shapes(f):
        text = hlo.lowered(f, SCORES, y).as_text()
        return re.findall(
            r"= stablehlo\.(?:log\w*|sqrt|exponential_minus_one) .*: tensor<(\w+)xf32>", text
        )

    assert {*shapes(f)} == {"64"}
    assert shapes(lambda x, y: jnp.log1p(x.sum(1, keepdims=True))) == ["64x1"]


def test_ctc_copies_no_array_of_the_logits_size():
    frames, batch, classes = 40, 3, 50
    shapes = [(frames, batch, classes), (batch, 5), (batch,), (batch,)]
    dtypes = [jnp.float32, *[jnp.int32] * 3]
    args = map(jax.ShapeDtypeStruct, shapes, dtypes)

    def loss(logits, *labels_and_lengths):
        return F.ctc_loss(jax.nn.log_softmax(logits), *labels_and_lengths)

    moved = hlo.copies(hlo.compiled(jax.value_and_grad(loss), *args))
    assert moved
    assert sorted(shapes[0]) not in [sorted(i.dims) for i in moved]
