"""Of optax's losses what the table of rows cannot show: shapes, reductions, masks of pixels."""

import math

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import BY_NAME
from jax.scipy.special import logsumexp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss

POISON = [np.nan, np.inf, -np.inf, 3e38]
LOGITS, TARGETS = (
    jnp.asarray(a, jnp.float32) for a in BY_NAME["dice"].sample(np.random.default_rng(3))
)


def test_dice_sums_over_all_but_the_first_and_last_dimension():
    images, masks = (x.reshape(2, 3, 3, 4) for x in (LOGITS, TARGETS))
    flat = jaxloss.dice_loss(images.reshape(2, 9, 4), masks.reshape(2, 9, 4))
    np.testing.assert_allclose(jaxloss.dice_loss(images, masks), flat, rtol=1e-6)
    np.testing.assert_allclose(jaxloss.dice_loss(images, masks, axis=(1, -2)), flat, rtol=1e-6)
    whole = jaxloss.dice_loss(images.reshape(1, 18, 4), masks.reshape(1, 18, 4))
    np.testing.assert_allclose(
        jaxloss.dice_loss(images, masks, axis=(0, 1, 2)), whole[0], rtol=1e-6
    )


@pytest.mark.parametrize("shape", [(3, 1), (3,), (1, 3, 1)])
def test_a_single_class_may_be_left_out(shape):
    logits, targets = LOGITS[:2, :, 0], TARGETS[:2, :, 0]
    wanted = oracle.binary_dice_loss(logits[..., None], targets[..., None])
    given = [x.reshape(2, *shape) for x in (logits, targets)]
    np.testing.assert_allclose(jaxloss.binary_dice_loss(*given), wanted, rtol=1e-6)
    if shape[-1] == 1:
        squeezed = given[1][..., 0]
        np.testing.assert_allclose(jaxloss.dice_loss(given[0], squeezed), wanted, rtol=1e-6)
        np.testing.assert_allclose(jaxloss.dice_loss(given[0][..., 0], given[1]), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        jaxloss.dice_loss,
        lambda *args, **options: jaxloss.tversky_loss(*args, alpha=0.3, beta=0.7, **options),
        jaxloss.multiclass_generalized_dice_loss,
    ],
    ids=["dice", "tversky", "generalized"],
)
def test_masked_pixels_and_classes_are_absent(loss):
    """The same as deleted, whatever they hold."""
    pixels, classes = np.array([True, False, True]), np.array([True, True, False, True])
    where = jnp.broadcast_to(pixels[:, None] & classes, LOGITS.shape)
    fewer = [x[:, pixels][..., classes] for x in (LOGITS, TARGETS)]
    wanted = jax.value_and_grad(lambda x: loss(x, fewer[1]).sum())(fewer[0])
    for poison in POISON:
        bad = [jnp.where(where, x, poison) for x in (LOGITS, TARGETS)]

        def total(x, targets=bad[1]):
            return loss(x, targets, where=where).sum()

        value, gradient = jax.value_and_grad(total)(bad[0])
        np.testing.assert_allclose(value, wanted[0], rtol=1e-5)
        np.testing.assert_array_equal(gradient[~where], 0)
        np.testing.assert_allclose(
            gradient[:, pixels][..., classes], wanted[1], rtol=1e-4, atol=1e-7
        )


def test_generalized_dice_is_the_mean_of_its_losses():
    losses = oracle.multiclass_generalized_dice_loss(LOGITS, TARGETS, reduction="none")
    f = jaxloss.multiclass_generalized_dice_loss
    np.testing.assert_allclose(f(LOGITS, TARGETS), losses.mean(), rtol=1e-6)
    np.testing.assert_allclose(f(LOGITS, TARGETS, reduction="sum"), losses.sum(), rtol=1e-6)
    without = f(LOGITS, TARGETS, ignore_background=True)
    np.testing.assert_allclose(without, losses[:, 1:].mean(), rtol=1e-6)


def test_nothing_there_and_nothing_predicted_is_perfect():
    zero = jnp.zeros((2, 5, 1))
    for smooth in (0.0, 1.0):
        value, gradient = jax.value_and_grad(
            lambda p, smooth=smooth: jaxloss.dice_loss(
                p, zero, smooth=smooth, apply_softmax=False
            ).sum()
        )(zero)
        assert value == 0
        assert np.all(np.isfinite(gradient))


def test_ntxent_is_the_mean_over_pairs():
    embeddings, labels = BY_NAME["ntxent"].inputs()
    each = oracle.ntxent_per_example(embeddings, labels)
    positives = (np.asarray(labels)[:, None] == np.asarray(labels)).sum(1) - 1
    wanted = (each * positives).sum() / positives.sum()
    np.testing.assert_allclose(jaxloss.ntxent(embeddings, labels), wanted, rtol=1e-5)
    bad = embeddings.at[1].set(jnp.nan)
    where = jnp.arange(len(labels)) != 1
    fewer = jaxloss.ntxent(embeddings[where], labels[where])
    np.testing.assert_allclose(jaxloss.ntxent(bad, labels, where=where), fewer, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-25, 1e20])
def test_ntxent_does_not_see_the_length(scale):
    embeddings, labels = BY_NAME["ntxent"].inputs()
    wanted = jaxloss.ntxent(embeddings, labels)
    np.testing.assert_allclose(jaxloss.ntxent(scale * embeddings, labels), wanted, rtol=1e-5)


def test_smoothed_labels_are_what_cross_entropy_makes_of_them():
    logits, labels = BY_NAME["cross_entropy_probabilities"].inputs()
    where = jnp.arange(5) != 2
    smoothed = jaxloss.smooth_labels(labels, 0.3, where=where[None])
    losses = jaxloss.softmax_cross_entropy(logits, smoothed, where=where[None])
    wanted = jaxloss.softmax_cross_entropy(logits, labels, where=where[None], label_smoothing=0.3)
    np.testing.assert_allclose(losses, wanted, rtol=1e-6)
    assert jaxloss.smooth_labels(labels.astype(jnp.bfloat16), 0.1).dtype == jnp.float32
    np.testing.assert_allclose(jaxloss.smooth_labels(labels, 0.5, axis=None).sum(), 3.5, rtol=1e-6)


def test_fenchel_young_loss_of_logsumexp_is_cross_entropy():
    loss = jaxloss.make_fenchel_young_loss(logsumexp)
    logits, labels = BY_NAME["cross_entropy_probabilities"].inputs()
    wanted = jaxloss.softmax_cross_entropy(logits, labels)
    np.testing.assert_allclose(loss(logits, labels), wanted, rtol=1e-5)
    half = loss(logits.astype(jnp.bfloat16), labels.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32
    gradient = jax.jit(jax.grad(lambda x: loss(x, labels).sum()))(logits)
    np.testing.assert_allclose(gradient, jax.nn.softmax(logits) - labels, rtol=1e-5, atol=1e-6)
    tempered = loss(logits, labels, None, b=jnp.full(5, 2.0))  # Further arguments of `max_fun`.
    np.testing.assert_allclose(tempered, wanted + np.log(2), rtol=1e-5)


def forward(logits, labels, frames, count):
    """log P of each prefix of labels in each prefix of frames, by the oracle of the whole loss."""
    return [
        [-oracle.ctc(logits[: t + 1][frames[: t + 1]], labels[:n])[0] for n in range(count + 1)]
        for t in range(len(logits))
    ]


def test_forward_variables_of_ctc():
    args = [a[:4] for a in BY_NAME["ctc"].inputs(seed=1)]
    logits, logit_paddings, labels, label_paddings = map(np.asarray, args)
    losses, blank, label = jaxloss.ctc_loss_with_forward_probs(*args)
    np.testing.assert_array_equal(losses, jaxloss.ctc_loss(*args))
    last = blank.at[-1].set(-jnp.inf)
    for b, count in enumerate((label_paddings == 0).sum(1)):
        frames = logit_paddings[b] == 0
        wanted = np.array(forward(logits[b], labels[b], frames, count))
        # A prefix ends in a blank or in its last label.
        behind = np.pad(label[:, b], ((0, 0), (1, 0)), constant_values=-np.inf)
        both = np.logaddexp(last[:, b], behind)[:, : count + 1]
        np.testing.assert_allclose(both[:-1], wanted[:-1], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(blank[-1, b, : count + 1], wanted[-1], rtol=1e-5, atol=1e-5)
        assert np.all(np.asarray(label)[:, b, count:] == -np.inf)


def test_forward_variables_differentiate():
    args = BY_NAME["ctc"].inputs(seed=2)

    def loss(logits):
        return -jaxloss.ctc_loss_with_forward_probs(logits, *args[1:])[1][-1, 3, 3]

    def wanted(logits):
        return jaxloss.ctc_loss(logits, *args[1:])[3]

    @jax.jit
    def derivatives(logits):
        along = jax.jvp(loss, (logits,), (jnp.ones_like(logits),))[1]
        return jax.grad(loss)(logits), jax.grad(wanted)(logits), along

    slopes, of_ctc, along = derivatives(args[0])
    np.testing.assert_allclose(slopes, of_ctc, atol=1e-6)
    np.testing.assert_allclose(along, 0, atol=1e-5)


def test_a_bad_label_spoils_the_forward_variables_of_its_sequence():
    logits, logit_paddings, labels, label_paddings = BY_NAME["ctc"].inputs(seed=2)
    found = jaxloss.ctc_loss_with_forward_probs(
        logits, logit_paddings, labels.at[2, 0].set(4), label_paddings
    )
    loss, blank, label = map(np.asarray, found)
    assert np.isnan(loss).tolist() == [False, False, True, False, False, False]
    assert np.all(np.isnan(blank[:, 2]))
    assert np.all(np.isnan(label[:, 2]))
    assert not np.any(np.isnan(np.delete(blank, 2, 1)))


OF_LABELS = [
    jaxloss.multiclass_hinge_loss,
    jaxloss.multiclass_perceptron_loss,
    jaxloss.multiclass_sparsemax_loss,
    jaxloss.softmax_focal_loss_with_integer_labels,
]
OF_PROBABILITIES = [jaxloss.poly_loss_cross_entropy, jaxloss.generalized_kl_divergence]


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
@pytest.mark.parametrize("f", [*OF_LABELS, *OF_PROBABILITIES], ids=lambda f: f.__name__)
def test_sharded_classes_stay_where_they_are(f, kind):
    scores = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    labels = np.arange(8, dtype=np.int32)
    if f in OF_PROBABILITIES:
        labels = np.eye(16, dtype=np.float32)[labels]
    mean = jax.value_and_grad(lambda x, y: f(x, y).mean())
    wanted = mean(scores, labels)
    grid = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind,) * 2)
    with jax.set_mesh(grid):
        spread = NamedSharding(grid, P("data", "model"))
        args = (
            jax.device_put(scores, spread),
            jax.device_put(labels, spread if labels.ndim > 1 else NamedSharding(grid, P("data"))),
        )
        program = hlo.compiled(mean, *args)
        value, gradient = program(*args)
    np.testing.assert_allclose(value, wanted[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, wanted[1], rtol=1e-5, atol=1e-7)
    assert gradient.sharding.spec == P("data", "model")
    # One number from each device for the largest class; none of the scores themselves.
    gathered = hlo.gathering(program)
    assert all(math.prod(i.dims) <= 4 * len(scores) // 2 for i in gathered)
