"""jit, vmap, scan, shard_map, checkpoint and jvp of every loss, and how often it is compiled."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BY_NAME, LOSSES, OUTERMOST, OUTERMOST_IDS, ROWWISE, losses_and_gradients
from jax.experimental import checkify
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxloss
from jaxloss import functional as F


@pytest.mark.parametrize(("loss", "door"), OUTERMOST, ids=OUTERMOST_IDS)
def test_vmap_is_the_loop(loss, door):
    call = loss.doors()[door]
    batches = [loss.inputs(seed=s) for s in (1, 2)]
    looped = np.stack([call(*batch) for batch in batches])
    stacked = map(np.stack, zip(*batches, strict=True))
    np.testing.assert_allclose(jax.vmap(call)(*stacked), looped, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("loss", ROWWISE, ids=str)
def test_vmap_of_grad_is_a_checkpointed_batch_spread_by_shard_map(loss):
    args = loss.inputs(seed=3)

    def sides(*args, wrap=lambda f: f):
        return losses_and_gradients(loss, args, wrap)

    vmapped = jax.jit(jax.vmap(sides))(*args)
    devices = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    remade = functools.partial(sides, wrap=jax.checkpoint)
    spread = jax.shard_map(remade, mesh=devices, in_specs=P("data"), out_specs=P("data"))
    chex.assert_trees_all_close(jax.jit(spread)(*args), vmapped, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(vmapped[0], loss.losses(*args), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss.labels], ids=str)
def test_labels_and_masks_may_be_traced(loss):
    scores, labels = loss.inputs(seed=4)
    where = np.arange(len(labels))[:, None] != 2

    def losses(scores, labels, where):
        return loss.losses(scores, labels, where=where)

    traced, _ = jax.jit(jax.value_and_grad(lambda *args: losses(*args).sum()))(
        scores, labels, where
    )
    np.testing.assert_allclose(traced, np.sum(losses(scores, labels, where)), 1e-6)


@pytest.fixture
def compilations():
    """The programs compiled so far, one entry each."""
    seen = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


X = np.array([[1.0, 0.5, 0.25], [3.0, -1.0, 0.0]], np.float32)
Y = np.array([[0.25, 2.5, 1.0], [0.5, 0.1, -0.75]], np.float32)
CLASSES = np.array([1, 0], np.int32)


def _partly(f, **fixed):
    return functools.wraps(f)(functools.partial(f, **fixed))


CHANGES = [
    (jaxloss.huber_loss, (X, Y), "delta", 0.5, 0.75),
    (jaxloss.smooth_l1_loss, (X, Y), "beta", 0.5, 0.75),
    (jaxloss.gaussian_nll_loss, (X, Y, Y), "eps", 1e-3, 1e-4),
    (jaxloss.poisson_nll_loss, (X, Y), "eps", 1e-3, 1e-4),
    (jaxloss.hinge_embedding_loss, (X, -np.ones_like(X)), "margin", 0.5, 2.0),
    (jaxloss.multi_margin_loss, (X, CLASSES), "margin", 0.5, 2.0),
    (jaxloss.triplet_margin_loss, (X, Y, X + Y), "margin", 0.5, 2.0),
    (jaxloss.triplet_margin_loss, (X, Y, X + Y), "eps", 0.5, 2.0),
    (jaxloss.softmax_cross_entropy_with_integer_labels, (X, CLASSES), "z_loss", 0.5, 0.25),
    (jaxloss.softmax_cross_entropy_with_integer_labels, (X, CLASSES), "softcap", 2.0, 3.0),
    (jaxloss.softmax_cross_entropy, (X, np.abs(Y)), "softcap", 2.0, 3.0),
    (jaxloss.softmax_statistics, (X, CLASSES), "softcap", 2.0, 3.0),
    (jaxloss.softmax_statistics, (X, CLASSES), "temperature", 0.5, 0.75),
    (jaxloss.sigmoid_focal_loss, (X, (Y > 0.3) * np.float32(1)), "alpha", 0.5, 0.75),
    (jaxloss.sigmoid_focal_loss, (X, (Y > 0.3) * np.float32(1)), "gamma", 0.5, 0.75),
    (jaxloss.softmax_focal_loss_with_integer_labels, (X, CLASSES), "gamma", 0.5, 0.75),
    (jaxloss.poly_loss_cross_entropy, (X, np.abs(Y)), "epsilon", 0.5, 0.75),
    (jaxloss.smooth_labels, (np.abs(Y),), "alpha", 0.5, 0.75),
    (jaxloss.dice_loss, (X, np.abs(Y)), "smooth", 0.5, 0.75),
    (jaxloss.dice_loss, (X, np.abs(Y)), "alpha", 0.5, 0.75),
    (jaxloss.ntxent, (np.tile(X, (2, 1)), np.tile(CLASSES, 2)), "temperature", 0.5, 0.75),
    (jaxloss.info_nce_loss, (X, Y), "temperature", 0.5, 0.75),
    (_partly(jaxloss.sigmoid_contrastive_loss, bias=0.5), (X, Y), "scale", 0.5, 0.75),
    (_partly(jaxloss.sigmoid_contrastive_loss, scale=0.5), (X[:1], Y[:1]), "bias", 0.5, 0.75),
    (
        jaxloss.supervised_contrastive_loss,
        (np.tile(X, (2, 1)), np.tile(CLASSES, 2)),
        "temperature",
        0.5,
        0.75,
    ),
    (jaxloss.reduce, (X,), "normalizer", 2.0, 3.0),
    (F.huber_loss, (X, Y), "delta", 0.5, 0.75),
    (F.triplet_margin_loss, (X, Y, X + Y), "margin", 0.5, 2.0),
    (F.cross_entropy, (X, CLASSES), "label_smoothing", 0.1, 0.2),
    (F.cross_entropy, (X, CLASSES), "ignore_index", -1, 1),
    (
        F.cross_entropy,
        (X, CLASSES),
        "weight",
        np.array([1, 2, 3], np.float32),
        np.array([3, 2, 1], np.float32),
    ),
    (
        F.nll_loss,
        (X, CLASSES),
        "weight",
        np.array([1, 2, 3], np.float32),
        np.array([3, 2, 1], np.float32),
    ),
    (F.multi_margin_loss, (X, CLASSES), "margin", 0.5, 0.75),
    (
        F.binary_cross_entropy_with_logits,
        (X, X),
        "pos_weight",
        np.array([1], np.float32),
        np.array([3], np.float32),
    ),
]


@pytest.mark.parametrize(
    ("f", "args", "name", "first", "second"),
    CHANGES,
    ids=[f"{c[0].__module__.split('.')[-2]}-{c[0].__name__}-{c[2]}" for c in CHANGES],
)
def test_changing_a_number_or_a_weight_does_not_recompile(
    f, args, name, first, second, compilations
):
    before = f(*args, **{name: first})
    done = len(compilations)
    after = f(*args, **{name: second})
    assert len(compilations) == done
    if name != "eps":
        assert not np.array_equal(before, after)
    f(*(np.concatenate([a] * 7) for a in args), **{name: second})
    assert len(compilations) > done  # A new shape does: the count can fail.


@pytest.mark.parametrize("name", ["huber", "cross_entropy_smoothed", "triplet"])
def test_an_eager_call_is_one_program(name, compilations):
    loss = BY_NAME[name]
    args = tuple(jnp.asarray(np.asarray(a)[:5]) for a in loss.inputs())
    loss.losses(*args)
    loss.functional(*args, reduction="mean")
    done = len(compilations)
    assert done >= 2
    loss.losses(*args)
    loss.functional(*args, reduction="mean")
    assert len(compilations) == done


def test_traced_hyper_parameters():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def f(x, y, delta):
        return jaxloss.huber_loss(x, y, delta=delta)

    for delta in (0.25, 0.5):
        np.testing.assert_array_equal(f(X, Y, delta), jaxloss.huber_loss(X, Y, delta=delta))
    swept = jax.vmap(lambda m: F.margin_ranking_loss(X[0], Y[0], np.sign(Y[0]), m))(jnp.arange(3.0))
    assert swept.shape == (3,)


def test_a_mutable_distance_function_is_not_baked_in():
    class Distance:
        scale = 1.0

        def __call__(self, x, y):
            return self.scale * jnp.sum(jnp.abs(x - y), -1)

    distance = Distance()

    def loss():
        return F.triplet_margin_with_distance_loss(
            X, Y, X + Y, distance_function=distance, margin=9.0
        )

    before = loss()
    distance.scale = 2.0
    assert loss() != before


def test_several_labels_are_checked_in_a_vmapped_batch():
    scores, labels = jnp.zeros((4, 3)), jnp.array([[0, -1, -1], [1, 2, -1], [-1, 0, 0], [2, 3, -1]])
    checked = checkify.checkify(jax.vmap(jaxloss.multilabel_margin_loss))
    error, _ = jax.jit(checked)(scores[:3], labels[:3])
    error.throw()
    error, losses = jax.jit(checked)(scores, labels)
    assert "multilabel_margin_loss: `labels`" in str(error.get())
    assert np.isnan(losses[3])
    np.testing.assert_array_equal(losses[:3], jaxloss.multilabel_margin_loss(scores, labels)[:3])
