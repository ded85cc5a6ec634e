"""Arrays that modules hold, however they are built: saved, never trained, never lost or leaked."""

import copy
import dataclasses
import functools
import pickle
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from cases import BY_NAME
from flax import nnx

import jaxloss.linen
import jaxloss.nnx
from jaxloss import modules
from jaxloss.modules import base

WEIGHT = np.array([0.5, 2.0, 1.0, 0.25, 3.0], np.float32)
# The row of the table whose inputs a class takes, and what its numbers matter with.
ROWS = {
    "NLLLoss": "nll",
    "NLLLoss2d": "nll",
    "PoissonNLLLoss": "poisson_rate_full",
    "GaussianNLLLoss": "gaussian",
    "BCELoss": "bce",
    "BCEWithLogitsLoss": "bce_logits",
    "HingeEmbeddingLoss": "hinge_embedding",
    "SmoothL1Loss": "smooth_l1",
    "HuberLoss": "huber",
    "CrossEntropyLoss": "cross_entropy",
    "MultiLabelSoftMarginLoss": "multilabel_soft_margin",
    "CosineEmbeddingLoss": "cosine_embedding",
    "MarginRankingLoss": "margin_ranking",
    "MultiMarginLoss": "multi_margin",
    "TripletMarginLoss": "triplet",
    "TripletMarginWithDistanceLoss": "triplet",
    "LinearCrossEntropyLoss": "cross_entropy",
    "FocalLoss": "sigmoid_focal_weighted",
    "DiceLoss": "cross_entropy",
}
OPTIONS = {
    "PoissonNLLLoss": {"log_input": False},
    "TripletMarginLoss": {"eps": 0.0},
}
# Other values than by default, so that a module that loses them gives another loss.
VALUES = {
    "weight": WEIGHT,
    "pos_weight": WEIGHT,
    "margin": np.float32(0.125),
    "eps": np.float32(0.25),
    "beta": np.float32(0.125),
    "delta": np.float32(0.125),
    "alpha": np.float32(0.125),
    "gamma": np.float32(0.125),
    "smooth": np.float32(0.125),
    "label_smoothing": np.float32(0.25),
    "ignore_index": np.int32(1),
}
FIELDS = [
    (name, field.name)
    for name, cls in vars(modules).items()
    if isinstance(cls, type) and issubclass(cls, base.Loss) and dataclasses.is_dataclass(cls)
    for field in dataclasses.fields(cls)
    if field.name in VALUES
]
BUFFERS = [(name, field) for name, field in FIELDS if field in ("weight", "pos_weight")]
NUMBERS = [pair for pair in FIELDS if pair not in BUFFERS]
BOTH = pytest.mark.parametrize("door", [jaxloss.nnx, jaxloss.linen], ids=["nnx", "linen"])
pytestmark = pytest.mark.filterwarnings("ignore:NLLLoss2d is deprecated:FutureWarning")
each_buffer = pytest.mark.parametrize(("name", "field"), BUFFERS, ids=map("-".join, BUFFERS))
each_field = pytest.mark.parametrize(("name", "field"), FIELDS, ids=map("-".join, FIELDS))


def test_every_field_that_may_hold_an_array_is_among_these():
    assert {field for _, field in FIELDS} == base.BUFFERS | base.NUMBERS == {*VALUES}
    assert {name for name, _ in FIELDS} == {*ROWS}
    assert len(BUFFERS) == 11


@functools.cache
def inputs(name):
    row = BY_NAME[ROWS[name]]
    with jax.ensure_compile_time_eval():  # A first call inside a trace would keep its tracers.
        args = row.as_torch(*row.inputs(seed=2))
    return (args[0].reshape(-1, 5), args[1].reshape(-1)) if "Linear" in name else args


def made(door, name, **options):
    sizes, more = (), {}
    if name == "LinearCrossEntropyLoss":
        sizes, more = (5, 5), {"rngs": nnx.Rngs(0)} if door is jaxloss.nnx else {}
    return getattr(door, name)(*sizes, **OPTIONS.get(name, {}) | options, **more)


def loss_of(module, name) -> Any:
    """Its value at the inputs above, in either door."""
    if isinstance(module, nn.Module):
        variables = module.init(jax.random.key(0), *inputs(name))
        return module.apply(variables, *inputs(name))
    return module(*inputs(name))


class Net(nnx.Module):
    """A model that makes every loss, with an array in each of its fields, as it is made itself."""

    def __init__(self):
        for name, field in FIELDS:
            value = jnp.asarray(VALUES[field])
            setattr(self, f"{name}_{field}", made(jaxloss.nnx, name, **{field: value}))
        self.scale = nnx.Param(jnp.ones(()))

    def losses(self):
        return [(getattr(self, f"{name}_{field}"), name, field) for name, field in FIELDS]

    def __call__(self):
        return self.scale[...] * jnp.stack([loss(*inputs(name)) for loss, name, _ in self.losses()])


@functools.cache
def expected_losses():
    """Those of numpy arrays in modules by themselves; each differs from that of the default."""
    pairs = [(made(jaxloss.nnx, n, **{f: VALUES[f]}), made(jaxloss.nnx, n)) for n, f in FIELDS]
    found = [
        [np.asarray(module(*inputs(name))) for module in pair]
        for pair, (name, _) in zip(pairs, FIELDS, strict=True)
    ]
    wanted, default = np.transpose(found)
    assert np.all(wanted != default)
    return wanted


def restored(build, folder, abstract):
    """Through a checkpoint, into a model that has not been filled or holds other numbers."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", nnx.state(build()))
        checkpointer.wait_until_finished()
        model = nnx.eval_shape(build) if abstract else build()
        graph, state = nnx.split(model)
        if not abstract:
            state = jax.tree.map(jnp.zeros_like, state)
        return nnx.merge(graph, checkpointer.restore(folder / "state", state))


def filled(build, folder):
    """Abstract, and its state assigned in place."""
    model = nnx.eval_shape(build)
    nnx.update(model, nnx.state(build()))
    return model


def from_pure_dict(build, folder):
    graph, state = nnx.split(nnx.eval_shape(build))
    nnx.replace_by_pure_dict(state, nnx.to_pure_dict(nnx.state(build())))
    return nnx.merge(graph, state)


def from_jax_jit(build, folder):
    graph = nnx.split(nnx.eval_shape(build))[0]
    return nnx.merge(graph, jax.jit(lambda: nnx.split(build())[1])())


def one_of_many(build, folder):
    many = nnx.vmap(build, axis_size=2, out_axes=0)()
    graph, state = nnx.split(many)
    return nnx.merge(graph, jax.tree.map(lambda x: x[1], state))


def assigned_in_a_program(build, folder):
    """Every array of the loss replaced by one that a compiled program computes."""
    model = build()

    @nnx.jit
    def change(model):
        for loss, _, field in model.losses():
            setattr(loss, field, getattr(loss, field)[...] * 1)

    change(model)
    return model


WAYS = {
    "as it is": lambda build, folder: build(),
    "nnx.jit": lambda build, folder: nnx.jit(build)(),
    "jax.jit": from_jax_jit,
    "nnx.eval_shape": filled,
    "pure dict": from_pure_dict,
    "nnx.vmap": one_of_many,
    "split and merge": lambda build, folder: nnx.merge(*nnx.split(build())),
    "clone": lambda build, folder: nnx.clone(build()),
    "deepcopy": lambda build, folder: copy.deepcopy(build()),
    "pickle": lambda build, folder: pickle.loads(pickle.dumps(build())),
    "tree map": lambda build, folder: jax.tree.map(lambda x: x, build()),
    "device_get": lambda build, folder: nnx.merge(
        nnx.split(build())[0], jax.device_get(nnx.state(build()))
    ),
    "checkpoint, abstract": lambda build, folder: restored(build, folder, abstract=True),
    "checkpoint, concrete": lambda build, folder: restored(build, folder, abstract=False),
    "assigned in a program": assigned_in_a_program,
}


def parameters_of_their_own(state):
    """Names of those that are no buffers and belong to no linear layer."""
    paths = [path for path, _ in nnx.to_flat_state(state) if "linear" not in path]
    return ["/".join(map(str, path)) for path in paths]


@pytest.mark.parametrize("way", WAYS)
def test_nnx_arrays_survive(way, tmp_path):
    net = WAYS[way](Net, tmp_path)
    held = nnx.to_pure_dict(nnx.state(net, jaxloss.nnx.Buffer))
    for name, field in FIELDS:
        own = held.pop(f"{name}_{field}")
        np.testing.assert_array_equal(own.pop(field), VALUES[field])
        assert own == {}, name
    assert held == {}
    assert parameters_of_their_own(nnx.state(net, nnx.Param)) == ["scale"]
    np.testing.assert_allclose(net(), expected_losses(), rtol=1e-6)


def test_nnx_arrays_in_the_transforms_of_a_train_step():
    net = Net()
    before = jax.device_get(nnx.to_pure_dict(nnx.state(net, jaxloss.nnx.Buffer)))
    optimizer = nnx.Optimizer(
        net, optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.001)), wrt=nnx.Param
    )

    def step(net, optimizer):
        def total(net):
            losses = net()
            return losses.sum(), losses

        gradient, losses = nnx.grad(total, has_aux=True)(net)
        optimizer.update(net, gradient)
        return losses

    losses = [nnx.jit(step)(net, optimizer)]
    losses.append(nnx.cached_partial(nnx.jit(step), net, optimizer)())
    losses.append(nnx.remat(lambda net: net())(net))

    @nnx.scan(in_axes=(nnx.Carry, None), out_axes=(nnx.Carry, 0), length=2)
    def scanned(carry, net):
        return carry, net()

    @nnx.vmap(in_axes=(None, 0))
    def mapped(net, x):
        return net() + x

    losses += [*scanned(0.0, net)[1], *mapped(net, jnp.zeros(2))]
    assert np.all(losses[0] != losses[1])
    assert np.all(losses[1] != losses[2])
    np.testing.assert_allclose(losses[2:], [net()] * 5, rtol=1e-6)
    after = nnx.to_pure_dict(nnx.state(net, jaxloss.nnx.Buffer))
    jax.tree.map(np.testing.assert_array_equal, after, before)


@pytest.mark.parametrize(
    "kind", [jnp.asarray, np.asarray, np.ndarray.tolist, nnx.Param, jaxloss.nnx.Buffer]
)
@each_buffer
def test_nnx_arrays_may_be_assigned(name, field, kind):
    value = kind(jnp.asarray(WEIGHT)) if kind is not np.ndarray.tolist else WEIGHT.tolist()
    wanted = made(jaxloss.nnx, name, **{field: WEIGHT})
    other = made(jaxloss.nnx, name, **{field: np.ones(5, np.float32)})
    for module in (made(jaxloss.nnx, name), other):
        setattr(module, field, value)
        assert isinstance(getattr(module, field), jaxloss.nnx.Buffer)
        assert nnx.split(module)[0] == nnx.split(wanted)[0]
        for f in (lambda m: m(*inputs(name)), nnx.jit(lambda m: m(*inputs(name)))):
            np.testing.assert_allclose(f(module), f(wanted), rtol=1e-6)
        setattr(module, field, None)
        np.testing.assert_array_equal(module(*inputs(name)), made(jaxloss.nnx, name)(*inputs(name)))
    with pytest.raises(TypeError, match=f"{name}: `{field}` must be an array, got str"):
        setattr(other, field, "ones")


@each_buffer
def test_a_buffer_is_shared_and_any_other_variable_is_read(name, field):
    shared = jaxloss.nnx.Buffer(jnp.ones(5))
    first, second = (made(jaxloss.nnx, name, **{field: shared}) for _ in range(2))
    shared[...] = jnp.asarray(WEIGHT)
    wanted = made(jaxloss.nnx, name, **{field: WEIGHT})(*inputs(name))
    for module in (first, second):
        np.testing.assert_array_equal(module(*inputs(name)), wanted)
    parameter = nnx.Param(jnp.asarray(WEIGHT))
    module = made(jaxloss.nnx, name, **{field: parameter})
    np.testing.assert_array_equal(module(*inputs(name)), wanted)
    assert getattr(module, field) is not parameter


@pytest.mark.parametrize(("name", "field"), NUMBERS, ids=map("-".join, NUMBERS))
def test_numbers_change_between_numbers_and_arrays(name, field):
    module, value = made(jaxloss.nnx, name), VALUES[field]
    wanted = made(jaxloss.nnx, name, **{field: value.item()})
    for given in (jnp.asarray(value), value.item(), np.asarray(value), value.item()):
        setattr(module, field, given)
        np.testing.assert_allclose(module(*inputs(name)), wanted(*inputs(name)), rtol=1e-6)
    assert nnx.split(module)[0] == nnx.split(wanted)[0]


@BOTH
@each_field
def test_fields_read_as_arrays(door, name, field):
    held = getattr(made(door, name, **{field: jnp.asarray(VALUES[field])}), field)
    value = VALUES[field]
    assert (held.shape, held.dtype, held.ndim) == (value.shape, value.dtype, value.ndim)
    np.testing.assert_array_equal(held, value)
    np.testing.assert_array_equal(held[...], value)
    np.testing.assert_array_equal(jnp.asarray(held), value)
    np.testing.assert_array_equal(jnp.multiply(held[...], 2), value * 2)
    if field in ("weight", "pos_weight"):
        assert held[1] == value[1]
        assert len(held) == 5
    else:
        assert float(held) == value


@BOTH
def test_arrays_of_a_module_made_in_a_program(door):
    """In Linen a module belongs to the program, which may lift it and give its loss."""

    def losses(values):
        return [loss_of(made(door, n, **{f: values[f]}), n) for n, f in FIELDS]

    found = jax.jit(losses)(jax.tree.map(jnp.asarray, VALUES))
    np.testing.assert_allclose(found, losses(VALUES), rtol=1e-6)


@BOTH
@pytest.mark.parametrize(
    ("name", "field", "value", "kept"),
    [
        ("MultiMarginLoss", "p", np.int32(2), 2),
        ("CTCLoss", "blank", np.int32(1), 1),
        ("TripletMarginLoss", "p", np.float32(1), 1.0),
        ("TripletMarginLoss", "swap", np.bool_(True), True),
        ("GaussianNLLLoss", "full", np.bool_(True), True),
    ],
)
def test_what_shapes_the_computation_is_a_python_value(door, name, field, value, kept):
    for array in (jnp.asarray(value), np.asarray(value)):
        module = getattr(door, name)(**{field: array})
        assert getattr(module, field) == kept
        assert type(getattr(module, field)) is type(kept)
        if door is jaxloss.nnx:
            assert not jax.tree.leaves(nnx.state(module))
    words = f"{name}: `{field}` must be a Python value, for it shapes the computation, got an array"
    with pytest.raises(TypeError, match=words):
        jax.jit(lambda x: getattr(door, name)(**{field: x}) and x)(jnp.asarray(value))


def test_a_field_of_ones_own_is_left_alone():
    @dataclasses.dataclass(eq=False)
    class Scaled(jaxloss.nnx.CrossEntropyLoss):
        scale: jax.Array = dataclasses.field(kw_only=True)

        def __call__(self, input, target):
            return self.scale * super().__call__(input, target)

    module = Scaled(weight=WEIGHT, scale=jnp.full((), 2.0))
    plain = jaxloss.nnx.CrossEntropyLoss(weight=WEIGHT)
    args = inputs("CrossEntropyLoss")
    np.testing.assert_allclose(module(*args), 2 * plain(*args), rtol=1e-6)
    assert isinstance(module.scale, jax.Array)
