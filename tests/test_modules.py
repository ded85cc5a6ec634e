"""torch's classes as Flax modules: the same numbers, buffers in the state, transforms of Flax."""

import copy

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import BY_NAME
from flax import nnx, serialization

import jaxloss.linen
import jaxloss.nnx
from jaxloss import functional as F
from jaxloss.functional.focal import focal_loss
from jaxloss.functional.overlap import dice_loss

WEIGHT = np.array([0.5, 2.0, 1.0, 0.25, 3.0], np.float32)
# The class, its options, the row of the table whose inputs it takes, and its function.
MODULES = [
    ("L1Loss", {}, "absolute_error", F.l1_loss),
    ("NLLLoss", {"weight": WEIGHT, "ignore_index": 2}, "nll", F.nll_loss),
    ("NLLLoss2d", {}, "nll", F.nll_loss),
    (
        "PoissonNLLLoss",
        {"log_input": False, "full": True, "eps": 1e-3},
        "poisson_rate_full",
        F.poisson_nll_loss,
    ),
    ("GaussianNLLLoss", {"full": True, "eps": 0.5}, "gaussian", F.gaussian_nll_loss),
    ("KLDivLoss", {"log_target": True}, "kl_log", F.kl_div),
    ("MSELoss", {}, "squared_error", F.mse_loss),
    ("BCELoss", {"weight": WEIGHT}, "bce", F.binary_cross_entropy),
    (
        "BCEWithLogitsLoss",
        {"weight": WEIGHT[:1], "pos_weight": WEIGHT},
        "bce_logits",
        F.binary_cross_entropy_with_logits,
    ),
    ("HingeEmbeddingLoss", {"margin": 0.5}, "hinge_embedding", F.hinge_embedding_loss),
    ("MultiLabelMarginLoss", {}, "multilabel_margin", F.multilabel_margin_loss),
    ("SmoothL1Loss", {"beta": 0.5}, "smooth_l1", F.smooth_l1_loss),
    ("HuberLoss", {"delta": 0.5}, "huber", F.huber_loss),
    ("SoftMarginLoss", {}, "soft_margin", F.soft_margin_loss),
    (
        "CrossEntropyLoss",
        {"weight": WEIGHT, "label_smoothing": 0.1, "ignore_index": 1},
        "cross_entropy",
        F.cross_entropy,
    ),
    (
        "MultiLabelSoftMarginLoss",
        {"weight": WEIGHT},
        "multilabel_soft_margin",
        F.multilabel_soft_margin_loss,
    ),
    ("CosineEmbeddingLoss", {"margin": 0.2}, "cosine_embedding", F.cosine_embedding_loss),
    ("MarginRankingLoss", {"margin": 0.2}, "margin_ranking", F.margin_ranking_loss),
    (
        "MultiMarginLoss",
        {"p": 2, "margin": 0.5, "weight": WEIGHT},
        "multi_margin",
        F.multi_margin_loss,
    ),
    (
        "TripletMarginLoss",
        {"margin": 0.5, "p": 1.0, "eps": 0.0, "swap": True},
        "triplet",
        F.triplet_margin_loss,
    ),
    ("CTCLoss", {"zero_infinity": True}, "ctc", F.ctc_loss),
    ("RNNTLoss", {"blank": 0, "clamp": 0.125}, "rnnt", F.rnnt_loss),
    (
        "FocalLoss",
        {"alpha": 0.25, "gamma": 0.5, "weight": WEIGHT, "ignore_index": 1},
        "sigmoid_focal_weighted",
        focal_loss,
    ),
    (
        "DiceLoss",
        {"smooth": 0.5, "weight": WEIGHT, "ignore_index": 1},
        "cross_entropy",
        dice_loss,
    ),
    (
        "TripletMarginWithDistanceLoss",
        {"margin": 0.5, "swap": True},
        "triplet",
        F.triplet_margin_with_distance_loss,
    ),
]
IDS = [m[0] for m in MODULES]
BOTH = pytest.mark.parametrize("door", [jaxloss.nnx, jaxloss.linen], ids=["nnx", "linen"])
each = pytest.mark.parametrize(("name", "options", "row", "function"), MODULES, ids=IDS)


@pytest.fixture(autouse=True)
def _deprecated_class(recwarn):
    """NLLLoss2d warns; that it does has its own test."""
    with np.testing.suppress_warnings() as quiet:
        quiet.filter(FutureWarning)
        yield


def inputs(row, seed):
    return BY_NAME[row].as_torch(*BY_NAME[row].inputs(seed=seed))


@BOTH
@each
def test_module_is_its_function(door, name, options, row, function):
    args = inputs(row, seed=1)
    reductions = ["none", "mean", "sum"] + (["batchmean"] if name == "KLDivLoss" else [])
    for reduction in reductions:
        module = getattr(door, name)(**options, reduction=reduction)
        wanted = function(*args, **options, reduction=reduction)
        np.testing.assert_array_equal(module(*args), wanted)

    # The values have shown that a module passes its reduction on.
    module = getattr(door, name)(**options)

    def of_function(*args):
        return function(*args, **options)

    @jax.jit
    def gradients(*args):
        return [jax.grad(lambda x, f=f: f(x, *args[1:]))(args[0]) for f in (module, of_function)]

    np.testing.assert_array_equal(*gradients(*args))


@each
def test_nnx_buffers_are_state_but_no_parameters(name, options, row, function):
    module = getattr(jaxloss.nnx, name)(**options)
    buffers = {k: v for k, v in options.items() if isinstance(v, np.ndarray)}
    state = nnx.to_pure_dict(nnx.state(module))
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in buffers.items()}
    assert not jax.tree.leaves(nnx.state(module, nnx.Param))
    graph, state = nnx.split(module)
    args = inputs(row, seed=2)
    np.testing.assert_array_equal(nnx.merge(graph, state)(*args), module(*args))
    jitted = nnx.jit(lambda m, *args: m(*args))
    np.testing.assert_allclose(jitted(module, *args), module(*args), rtol=1e-6)


@each
def test_linen_modules_are_hashable_and_lift(name, options, row, function):
    cls = getattr(jaxloss.linen, name)
    module, twin = cls(**options), cls(**copy.deepcopy(options))
    assert module == twin
    assert hash(module) == hash(twin)
    assert module != cls(**options, reduction="sum")
    assert module.clone() == module
    args = inputs(row, seed=3)
    wanted = module(*args)
    assert not module.init(jax.random.key(0), *args)
    np.testing.assert_array_equal(module.apply({}, *args), wanted)
    for lifted in (nn.jit(cls), nn.remat(cls)):
        np.testing.assert_allclose(lifted(**options).apply({}, *args), wanted, rtol=1e-6)
    over_batches = nn.vmap(cls, variable_axes={}, split_rngs={})(**options)
    stacked = tuple(jnp.stack([a, a]) for a in args)
    got = over_batches.apply({}, *stacked)
    np.testing.assert_allclose(got, np.stack([wanted, wanted]), rtol=1e-5)


def test_linen_modules_with_other_weights_differ():
    one, other = (jaxloss.linen.CrossEntropyLoss(weight=np.full(3, w)) for w in (1.0, 2.0))
    assert one != other
    assert one != jaxloss.linen.NLLLoss(weight=np.ones(3))
    traced = jax.jit(lambda w: hash(jaxloss.linen.NLLLoss(weight=w)) and w)
    traced(np.ones(3, np.float32))


def test_linen_loss_as_a_field_and_inside_jit():
    class Net(nn.Module):
        loss: nn.Module

        @nn.compact
        def __call__(self, x, y):
            return self.loss(nn.Dense(5)(x), y)

    x, y = jnp.ones((2, 3)), jnp.array([0, 4])
    net = Net(jaxloss.linen.CrossEntropyLoss(weight=WEIGHT))
    variables = net.init(jax.random.key(0), x, y)
    assert list(variables["params"]) == ["Dense_0"]
    step = jax.jit(lambda v, net: net.apply(v, x, y), static_argnums=1)
    assert jnp.allclose(step(variables, net), jnp.asarray(net.apply(variables, x, y)))


def test_nnx_loss_inside_a_model_is_saved_and_not_trained():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(3, 5, rngs=rngs)
            self.loss = jaxloss.nnx.CrossEntropyLoss(weight=WEIGHT)

        def __call__(self, x, y):
            return self.loss(self.linear(x), y)

    net = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(net, optax.sgd(0.1), wrt=nnx.Param)
    x, y = jnp.ones((2, 3)), jnp.array([0, 4])

    @nnx.jit
    def step(net, optimizer):
        loss, gradient = nnx.value_and_grad(lambda net: net(x, y))(net)
        optimizer.update(net, gradient)
        return loss

    losses = [step(net, optimizer) for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]
    np.testing.assert_array_equal(net.loss.weight, WEIGHT)

    saved = serialization.to_bytes(nnx.to_pure_dict(nnx.state(net)))
    fresh = Net(nnx.Rngs(1))
    fresh.loss.weight = jnp.zeros(5)
    state = nnx.state(fresh)
    pure = nnx.to_pure_dict(state)
    nnx.replace_by_pure_dict(state, serialization.from_bytes(pure, saved))
    nnx.update(fresh, state)
    np.testing.assert_array_equal(fresh.loss.weight, WEIGHT)
    np.testing.assert_allclose(fresh(x, y), net(x, y), rtol=1e-6)


def test_distance_may_be_a_module_that_learns():
    class Distance(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(jnp.ones(4))

        def __call__(self, x, y):
            return jnp.sum(jnp.abs(self.scale[...][None] * (x - y)), -1)

    loss = jaxloss.nnx.TripletMarginWithDistanceLoss(distance_function=Distance(), margin=9.0)
    args = tuple(
        jnp.asarray(np.random.default_rng(i).normal(size=(3, 4)), jnp.float32) for i in range(3)
    )
    gradient = nnx.grad(lambda loss: loss(*args))(loss)
    assert np.any(jax.tree.leaves(gradient)[0])


@BOTH
def test_constructor_takes_torch_positions_and_legacy_flags(door):
    module = door.NLLLoss(WEIGHT, None, 3, None, "sum")
    assert (module.ignore_index, module.reduction) == (3, "sum")
    with pytest.warns(DeprecationWarning, match="reduction='sum'"):
        module = door.CrossEntropyLoss(size_average=False)
    assert module.reduction == "sum"
    assert module.size_average is None
    with pytest.raises((TypeError, ValueError)):  # Linen takes it for the parent.
        door.GaussianNLLLoss(True)


@BOTH
def test_constructor_refuses_what_can_not_be_right(door):
    for call, words in (
        (
            lambda: door.L1Loss(reduction="avg"),
            "L1Loss: `reduction` must be 'none', 'mean' or 'sum', got 'avg'",
        ),
        (lambda: door.KLDivLoss(reduction="avg"), "KLDivLoss: `reduction` must be 'none', 'mean'"),
        (lambda: door.MultiMarginLoss(p=3), "MultiMarginLoss: `p` must be 1 or 2, got 3"),
        (
            lambda: door.MultiMarginLoss(weight=np.ones((2, 2))),
            r"MultiMarginLoss: `weight` must have shape \(C,\), got \(2, 2\)",
        ),
        (
            lambda: door.TripletMarginLoss(margin=0),
            "TripletMarginLoss: `margin` must be positive, got 0",
        ),
        (
            lambda: door.TripletMarginWithDistanceLoss(margin=-1.0),
            "TripletMarginWithDistanceLoss: `margin` must be positive, got -1.0",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            call()


@BOTH
def test_constructor_refuses_sizes_that_are_none(door):
    more = {"rngs": nnx.Rngs(0)} if door is jaxloss.nnx else {}
    for cls, sizes, words in (
        ("LinearCrossEntropyLoss", ("3", 4), "`in_features` must be an integer of 0 or more"),
        ("LinearCrossEntropyLoss", (3, -4), "`num_classes` must be an integer of 1 or more"),
        ("AdaptiveLogSoftmaxWithLoss", (0, 4, [2]), "`in_features` must be an integer of 1 or"),
        ("AdaptiveLogSoftmaxWithLoss", (3, 4.0, [2]), "`n_classes` must be an integer of 2 or"),
    ):
        with pytest.raises(ValueError, match=f"{cls}: {words}"):
            getattr(door, cls)(*sizes, **more)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("LinearCrossEntropyLoss", (3, 4)), ("AdaptiveLogSoftmaxWithLoss", (4, 4, [2]))],
)
def test_rngs_that_are_none_are_refused(name, sizes):
    with pytest.raises(TypeError, match=f"{name}: `rngs` must be a `flax.nnx.Rngs`, got int"):
        getattr(jaxloss.nnx, name)(*sizes, rngs=0)


@BOTH
@pytest.mark.parametrize("weight", [[1.0, 2.0, 4.0], (1.0, 2.0, 4.0), np.array([1.0, 2.0, 4.0])])
def test_weights_may_be_what_numpy_takes(door, weight):
    x, y = jnp.array([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]), jnp.array([0, 1])
    module = door.CrossEntropyLoss(weight=weight)
    np.testing.assert_array_equal(module(x, y), F.cross_entropy(x, y, jnp.array([1.0, 2.0, 4.0])))


@BOTH
def test_weights_that_are_no_arrays_are_refused(door):
    class Tensor:
        """Another library's array."""

        def __array__(self, dtype=None, copy=None):
            return np.ones(3)

    words = "CrossEntropyLoss: `weight` must be an array of JAX or numpy, got"
    with pytest.raises(TypeError, match=words):
        door.CrossEntropyLoss(weight=Tensor())
    words = "BCEWithLogitsLoss: `pos_weight` must be an array, got a list that does not make one"
    with pytest.raises(TypeError, match=words):
        door.BCEWithLogitsLoss(pos_weight=[[1.0], [1.0, 2.0]])


@BOTH
def test_nllloss2d_warns(door):
    with pytest.warns(FutureWarning, match="NLLLoss2d is deprecated, please use NLLLoss"):
        module = door.NLLLoss2d()
    x = jax.nn.log_softmax(jnp.zeros((2, 3, 4, 4)), 1)
    np.testing.assert_allclose(module(x, jnp.zeros((2, 4, 4), jnp.int32)), np.log(3), rtol=1e-6)


def test_a_name_that_a_subclass_adds_is_its_own():
    class Trained(jaxloss.nnx.L1Loss):
        def __post_init__(self):
            super().__post_init__()
            self.weight = nnx.Param(jnp.ones(3))
            self.margin = nnx.Linear(2, 2, rngs=nnx.Rngs(0))

    assert {*nnx.to_pure_dict(nnx.state(Trained(), nnx.Param))} == {"weight", "margin"}
