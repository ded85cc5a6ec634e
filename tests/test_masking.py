"""Masked means absent: the same as deleted, whatever the masked entries hold."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BY_NAME, CLASSES_MASKED, LOSSES, ROWWISE, UNREDUCED, C, N, arrays, replaced
from hlo import compiled, cost

import jaxloss
from jaxloss import functional as F

KEPT = np.array([True, False, True, True, False, True])
POISON = [np.nan, np.inf, -np.inf, 3e38]


def poisoned(loss, args, where, value):
    """The arguments with everything that `where` excludes overwritten, labels too."""

    def overwritten(a):
        if not loss.rowwise and a.dtype.kind == "f" and a.shape != args[0].shape:
            return a  # What all examples have in common.
        keep = where if a.ndim == where.ndim else where.reshape(N, *(1,) * (a.ndim - 1))
        return np.where(keep, a, a.dtype.type(value if a.dtype.kind == "f" else 10**6))

    return tuple(overwritten(np.asarray(a)) for a in args)


def derivatives(loss, options):
    """Value, gradients, and how both change along a direction, of a masked loss, as one program.

    Along it every argument moves, so that all of the Hessian has its part in how the gradients do.
    """

    @jax.jit  # Traced once for the three derivatives.
    def value(where, *args):
        return getattr(jaxloss, loss.core)(*args, **arrays(options), where=where)

    @jax.jit
    def run(where, *args):
        def forward(*floats):
            return value(where, *replaced(args, loss.floats, floats))

        floats = tuple(args[p] for p in loss.floats)
        direction = tuple(jnp.cos(jnp.arange(1.0, x.size + 1)).reshape(x.shape) for x in floats)
        slopes = jax.grad(lambda *floats: forward(*floats).sum(), range(len(floats)))
        losses, tangent = jax.jvp(forward, floats, direction)
        gradients, curvatures = jax.jvp(slopes, floats, direction)
        return losses, gradients, tangent, curvatures

    return run


def value_and_gradients(loss, options):
    """The same without a mask, as what it is compared with."""

    @jax.jit
    def run(*args):
        def total(*args):
            losses = getattr(jaxloss, loss.core)(*args, **arrays(options))
            return losses.sum(), losses

        (_, losses), gradients = jax.value_and_grad(total, loss.floats, has_aux=True)(*args)
        return losses, gradients

    return run


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_masked_examples_are_absent(loss):
    args, where = loss.inputs(seed=1), loss.where(KEPT)
    masked = derivatives(loss, loss.options)
    per_row = [loss.rowwise or p != 1 for p in range(len(args))]
    fewer = (np.asarray(a)[KEPT] if own else a for a, own in zip(args, per_row, strict=True))
    losses, gradients = value_and_gradients(loss, loss.options)(*fewer)
    for poison in POISON:
        bad = poisoned(loss, args, np.asarray(where), poison)
        value, slopes, tangent, curvatures = jax.device_get(masked(where, *bad))
        np.testing.assert_array_equal(value[~KEPT], 0)
        np.testing.assert_allclose(value[KEPT], losses, rtol=1e-5, atol=1e-7)
        for p, mine, wanted, curvature in zip(
            loss.floats, slopes, gradients, curvatures, strict=True
        ):
            if per_row[p]:
                np.testing.assert_array_equal(mine[~KEPT], 0)
                np.testing.assert_array_equal(curvature[~KEPT], 0)
                mine = mine[KEPT]
            np.testing.assert_allclose(mine, wanted, rtol=1e-5, atol=1e-6)
            assert np.all(np.isfinite(curvature))
        np.testing.assert_array_equal(tangent[~KEPT], 0)
        assert np.all(np.isfinite(tangent))
    if loss.rowwise:
        check_that_nothing_takes_part(loss, masked)


def check_that_nothing_takes_part(loss, masked):
    """Nor a row, nor what all rows have in common; also as one mask for all of them."""
    args = tuple(np.full_like(a, np.nan) if a.dtype.kind == "f" else a for a in loss.inputs())
    none = loss.where(np.zeros(N, bool))
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), masked(none, *args))

    @jax.jit
    def common(*args):
        return jax.value_and_grad(
            lambda *args: loss.losses(*args, where=none[:1]).sum(), loss.floats
        )(*args)

    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), common(*args))


ELEMENTWISE = [loss for loss in LOSSES if loss.mask == "elements"]


@pytest.mark.parametrize("loss", ELEMENTWISE, ids=str)
def test_masked_elements_are_absent(loss):
    args = loss.inputs(seed=8)
    where = np.random.default_rng(0).uniform(size=args[0].shape) < 0.6
    # Hyper-parameters with a number for each element as well.
    each = {k: np.full(args[0].shape, v) for k, v in loss.options.items() if isinstance(v, float)}
    plain = {**loss.options, **each}
    bad = {k: np.where(where, v, np.nan) for k, v in each.items()}
    value, gradients, tangent, _ = derivatives(loss, plain)(None, *args)
    masked = derivatives(loss, {**plain, **bad})
    for poison in POISON:
        found = masked(jnp.asarray(where), *poisoned(loss, args, where, poison))
        for mine, wanted in zip((found[0], *found[1]), (value, *gradients), strict=True):
            np.testing.assert_allclose(mine, np.where(where, wanted, 0), rtol=1e-6, atol=1e-7)
            np.testing.assert_array_equal(mine[~where], 0)
        np.testing.assert_allclose(found[2], np.where(where, tangent, 0), rtol=1e-6, atol=1e-6)
        chex.assert_tree_all_finite(found[3])


@pytest.mark.parametrize("f", [jaxloss.cosine_similarity, jaxloss.cosine_distance])
def test_masked_entries_of_an_angle_are_absent(f):
    x1, x2 = BY_NAME["cosine_similarity"].inputs()
    keep = np.array([True, False, True, True, False])
    where = jnp.broadcast_to(keep, x1.shape)
    wanted = f(x1[:, keep], x2[:, keep])
    for poison in POISON:
        bad = (jnp.where(where, x, poison) for x in (x1, x2))
        np.testing.assert_allclose(f(*bad, where=where), wanted, rtol=1e-6)


def test_masked_class_of_several_labels():
    where = jnp.array([True, True, False, True])
    scores, labels = jnp.array([[0.1, 0.4, 9.0, 0.8]]), jnp.array([[3, 0, -1, 2]])
    value = jaxloss.multilabel_margin_loss(scores, labels, where=where[None])
    fewer = jaxloss.multilabel_margin_loss(scores[:, where], jnp.array([[2, 0, -1]]))
    np.testing.assert_allclose(value, fewer, rtol=1e-6)
    assert np.isnan(jaxloss.multilabel_margin_loss(scores, labels - 1, where=where[None]))


def test_a_missing_target_has_no_gradient():
    keep = jnp.array([True, False])
    targets, x = jnp.array([1.0, jnp.nan]), jnp.array([3.0, 4.0])

    def loss(x):
        return jaxloss.reduce(jaxloss.squared_error(x, targets, where=keep), where=keep)

    np.testing.assert_array_equal(jax.grad(loss)(x), [4, 0])


def test_distance_of_ones_own_is_differentiated_between_different_numbers():
    def distance(x, y):
        return jnp.linalg.norm(x["a"] - y["a"], axis=-1)  # Its gradient at 0 is NaN.

    where = jnp.array([True, False, True])
    given = [{"a": x[:3]} for x in BY_NAME["triplet"].inputs()]
    bad = [{"a": jnp.where(where[:, None], tree["a"], jnp.nan)} for tree in given]

    def losses(triplet, where=None):
        return jaxloss.triplet_margin_with_distance_loss(
            *triplet, distance_function=distance, swap=True, where=where
        )

    def gradient(triplet, where=None):
        return jax.grad(lambda t: losses(t, where).sum())(triplet)

    wanted = losses(given)
    np.testing.assert_allclose(losses(bad, where), jnp.where(where, wanted, 0), rtol=1e-6)
    for mine, all_of_them in zip(gradient(bad, where), gradient(given), strict=True):
        slope = jnp.where(where[:, None], all_of_them["a"], 0)
        np.testing.assert_allclose(mine["a"], slope, rtol=1e-6)


@pytest.mark.parametrize("name", sorted({loss.core for loss in ELEMENTWISE}))
def test_a_mask_costs_its_own_bytes(name):
    """It is read for value and gradient. On a CPU XLA stores selections before a sum, one here."""
    x = jnp.ones((256, 512))
    mask = jnp.ones(x.shape, bool)
    count = {"gaussian_nll_loss": 3, "margin_ranking_loss": 3}.get(name, 2)
    f = getattr(jaxloss, name)

    def bytes_accessed(where, *args):
        def total(x, where, *others):
            return f(x, *others, where=where).sum()

        return cost(compiled(jax.value_and_grad(total), x, where, *args), "bytes accessed")

    args = (x,) * (count - 1)
    least = (2 * count + 3) * x.nbytes
    allowed = max(bytes_accessed(None, *args), least) + 2 * mask.nbytes
    assert bytes_accessed(mask, *args) <= 1.01 * allowed


def poisoned_classes(args, where, value):
    """The arguments with every float that `where` excludes overwritten."""
    return tuple(
        np.where(where, a, np.float32(value))
        if a.shape == where.shape and a.dtype.kind == "f"
        else a
        for a in args
    )


@pytest.mark.parametrize("loss", CLASSES_MASKED, ids=str)
def test_masked_classes_are_absent(loss):
    args = loss.inputs(seed=2)
    keep = np.array([True, True, False, True, False])
    where = np.broadcast_to(keep, (N, C))
    fewer = tuple(a[:, keep] if a.ndim == 2 else a for a in args)
    if loss.labels:  # The same class has another index once classes are deleted.
        remaining = np.flatnonzero(keep)
        position = np.asarray(args[1]) % len(remaining)
        args = (args[0], jnp.asarray(remaining[position], jnp.int32))
        fewer = (fewer[0], jnp.asarray(position, jnp.int32))
    options = {
        name: v[keep] if isinstance(v, np.ndarray) else v for name, v in loss.options.items()
    }
    masked = derivatives(loss, loss.options)
    deleted = value_and_gradients(loss, options)(*fewer)
    for poison in POISON:
        bad = poisoned_classes(args, where, poison)
        value, gradients, tangent, curvatures = masked(jnp.asarray(where), *bad)
        np.testing.assert_allclose(value, deleted[0], rtol=1e-5, atol=1e-7)
        for mine, wanted in zip(gradients, deleted[1], strict=True):
            np.testing.assert_array_equal(np.asarray(mine)[~where], 0)
            np.testing.assert_allclose(np.asarray(mine)[:, keep], wanted, rtol=1e-5, atol=1e-7)
        assert np.all(np.isfinite(tangent))
        chex.assert_tree_all_finite(curvatures)


def test_label_of_a_masked_class_is_a_bad_label():
    for f in (
        jaxloss.softmax_cross_entropy_with_integer_labels,
        jaxloss.negative_log_likelihood,
    ):
        where = jnp.array([[True, False, True], [True, True, True]])
        losses = f(jnp.zeros((2, 3)), jnp.array([1, 1]), where=where)
        assert np.isnan(losses[0])
        assert np.isfinite(losses[1])


IGNORING = {
    "cross_entropy": F.cross_entropy,
    "cross_entropy_smoothed": F.cross_entropy,
    "nll": F.nll_loss,
}


@pytest.mark.parametrize("ignore_index", [-100, 2])
@pytest.mark.parametrize("name", IGNORING)
def test_ignored_is_deleted(name, ignore_index):
    loss, f = BY_NAME[name], IGNORING[name]
    x, y = loss.inputs(seed=3)
    y = jnp.where(y == 2, 0, y)
    bad_x, bad_y = jnp.where(KEPT[:, None], x, jnp.nan), jnp.where(KEPT, y, ignore_index)

    @jax.jit
    def run(x, y):
        def total(x, reduction):
            options = {**loss.torch_options, "reduction": reduction, "ignore_index": ignore_index}
            return f(x, y, **options).sum()

        return [jax.value_and_grad(total)(x, how) for how in ("none", "mean", "sum")]

    for (value, slope), (wanted, slopes) in zip(
        run(bad_x, bad_y), run(x[KEPT], y[KEPT]), strict=True
    ):
        np.testing.assert_allclose(value, wanted, rtol=1e-6)
        np.testing.assert_array_equal(slope[~KEPT], 0)
        np.testing.assert_allclose(slope[KEPT], slopes, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("f", [F.cross_entropy, F.nll_loss], ids=lambda f: f.__name__)
@pytest.mark.parametrize("weight", [None, np.zeros(3, np.float32)], ids=["ignored", "weight 0"])
def test_mean_of_nothing_is_nan_with_gradient_0(f, weight):
    y = jnp.array([-100, -100]) if weight is None else jnp.array([0, 1])
    x = jnp.ones((2, 3))
    assert np.isnan(f(x, y, weight))
    np.testing.assert_array_equal(jax.grad(f)(x, y, weight), 0)
    assert f(x, y, weight, reduction="sum") == 0


def test_empty_batch():
    assert jaxloss.reduce(jnp.zeros(0)) == 0
    reduced = [loss for loss in ROWWISE if loss.torch and loss.torch not in UNREDUCED]

    @jax.jit
    def run():
        args = {loss.name: [a[:0] for a in loss.inputs()] for loss in ROWWISE}
        losses = [loss.losses(*args[loss.name]) for loss in ROWWISE]
        means, sums = (
            [loss.functional(*args[loss.name], reduction=how) for loss in reduced]
            for how in ("mean", "sum")
        )
        return losses, means, sums

    losses, means, sums = run()
    assert not any(x.size for x in losses)
    assert np.all(np.isnan(means))
    np.testing.assert_array_equal(sums, 0)
