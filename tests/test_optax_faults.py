"""What is wrong or rough in optax's losses, each with what stands here instead.

optax itself is not called: a repaired optax does not make these expectations wrong.
"""

import functools

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.scipy.special import logsumexp

import jaxloss

INF = jnp.inf


def test_log_cosh_of_small_errors_keeps_its_digits():
    errors = jnp.array([1e-4, -1e-3, 1e-2, 0.5, 30.0, 1e30])
    wanted = oracle.log_cosh(np.asarray(errors), np.zeros(6))
    np.testing.assert_allclose(jaxloss.log_cosh(errors), wanted, rtol=4e-7)


def test_cosine_distance_of_almost_parallel_vectors_keeps_its_digits():
    x, y = jnp.array([[1.0, 0.0], [3e20, 0.0]]), jnp.array([[1.0, 1e-4], [1e20, 1e16]])
    np.testing.assert_allclose(jaxloss.cosine_distance(x, y), [5e-9, 5e-9], rtol=1e-6)


def test_cosine_distance_of_a_zero_vector_is_1_with_gradient_0():
    value, gradient = jax.value_and_grad(jaxloss.cosine_distance)(jnp.zeros(3), jnp.ones(3))
    assert value == 1
    assert not np.any(gradient)


def test_a_cosine_of_vectors_below_epsilon_is_that_of_shorter_ones():
    x, y = jnp.array([3e-3, 4e-3]), jnp.array([0.0, 2.0])
    np.testing.assert_allclose(jaxloss.cosine_similarity(x, y, epsilon=1e-4), 0.4, rtol=1e-6)
    np.testing.assert_allclose(jaxloss.cosine_distance(x, y, epsilon=1e-4), 0.6, rtol=1e-6)


@pytest.mark.parametrize("f", [jaxloss.cosine_similarity, jaxloss.cosine_distance])
def test_a_pair_of_which_nothing_takes_part_is_0(f):
    where = jnp.array([[True], [False]])
    x = jnp.array([[1.0, 2.0], [jnp.nan, 1.0]])
    assert f(x, jnp.ones((2, 2)), where=where)[1] == 0


@pytest.mark.parametrize("f", [jaxloss.hinge_loss, jaxloss.perceptron_loss])
def test_binary_margins_pass_all_of_the_gradient_at_the_tie_and_do_not_broadcast(f):
    tie = {jaxloss.hinge_loss: 1.0, jaxloss.perceptron_loss: 0.0}[f]
    assert jax.grad(f)(tie, 1.0) == -1
    with pytest.raises(ValueError, match="shape"):
        f(jnp.ones((3, 1)), jnp.ones(3))


OF_CLASSES = [
    jaxloss.multiclass_hinge_loss,
    jaxloss.multiclass_perceptron_loss,
    jaxloss.multiclass_sparsemax_loss,
]


@pytest.mark.parametrize("f", OF_CLASSES, ids=lambda f: f.__name__)
def test_a_bad_label_is_neither_none_nor_counted_from_the_end(f):
    scores = jnp.arange(9.0).reshape(3, 3) % 4
    losses = f(scores, jnp.array([-1, 3, 0]))
    assert np.all(np.isnan(losses[:2]))
    assert np.isfinite(losses[2])


def test_sparsemax_takes_any_batch_and_scatters_nothing():
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
    labels = jnp.array([[0, 1, 2], [3, 0, 1]])
    losses = jaxloss.multiclass_sparsemax_loss(scores, labels)
    assert losses.shape == (2, 3)
    np.testing.assert_allclose(losses[1], jaxloss.multiclass_sparsemax_loss(scores[1], labels[1]))
    moved = jaxloss.multiclass_sparsemax_loss(jnp.moveaxis(scores, -1, 0), labels, axis=0)
    np.testing.assert_allclose(losses, moved, rtol=1e-6)

    def total(scores):
        return jaxloss.multiclass_sparsemax_loss(scores, labels).sum()

    assert hlo.operations(hlo.lowered(jax.grad(total), scores), "scatter") == 0


def test_sparsemax_is_accurate_where_the_model_is_confident():
    lead = np.array([0.999, 0.99999, 1.0, 2.0])
    scores = jnp.stack([1e3 + jnp.asarray(lead, jnp.float32), jnp.full(4, 1e3)], -1)
    left = np.clip(1 - (np.asarray(scores[:, 0], np.float64) - 1e3), 0, None)
    losses = jaxloss.multiclass_sparsemax_loss(scores, jnp.zeros(4, int))
    np.testing.assert_allclose(losses, left**2 / 4, rtol=1e-6)


def test_sparsemax_of_many_classes():
    """The support is found in few steps, also of scores that lie close together."""
    rng = np.random.default_rng(1)
    spread = np.array([1e-3, 0.1, 1.0, 10.0])[:, None]
    scores = np.asarray(rng.normal(size=(4, 500)) * spread, np.float32)
    labels = np.array([0, 7, 499, 3])
    wanted = oracle.multiclass_sparsemax_loss(scores, labels)
    losses = jaxloss.multiclass_sparsemax_loss(jnp.asarray(scores), jnp.asarray(labels))
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)


def test_fenchel_young_loss_of_a_score_of_minus_infinity():
    loss = jaxloss.make_fenchel_young_loss(logsumexp)
    scores, targets = jnp.array([0.0, -INF, 1.0]), jnp.array([0.0, 0.0, 1.0])
    np.testing.assert_allclose(loss(scores, targets), np.log1p(np.exp(-1)), rtol=1e-6)
    gradient = jax.grad(loss)(scores, targets)
    np.testing.assert_allclose(gradient[::2], [0.2689414, -0.2689414], rtol=1e-5)


def test_poly_loss_of_a_confident_model_keeps_its_digits():
    logits, labels = jnp.array([[17.5, 0.0]]), jnp.array([[1.0, 0.0]])
    wrong = np.exp(-17.5)  # -log p and 1 - p, to first order.
    value, gradient = jax.value_and_grad(
        lambda x: jaxloss.poly_loss_cross_entropy(x, labels).sum()
    )(logits)
    np.testing.assert_allclose(value, 3 * wrong, rtol=1e-5)
    np.testing.assert_allclose(gradient, [[-3 * wrong, 3 * wrong]], rtol=1e-5)


@pytest.mark.parametrize("difference", [1e-4, 1e-3, 0.1, 0.49, 0.51, 3.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_generalized_kl_of_close_numbers_keeps_its_digits(difference, sign):
    log_predictions = jnp.full(1, sign * difference)
    exact = np.asarray(log_predictions, np.float64)
    wanted = np.expm1(exact) - exact
    if difference < 0.01:
        wanted = exact**2 / 2 + exact**3 / 6 + exact**4 / 24
    loss = jaxloss.generalized_kl_divergence(log_predictions, jnp.ones(1))
    np.testing.assert_allclose(loss, wanted[0], rtol=1e-6)


def test_safe_cross_entropy_has_a_forward_derivative():
    logits, labels = jnp.array([[1.0, 1.0, -INF]]), jnp.array([[0.5, 0.5, 0.0]])
    arguments = (logits, labels), (jnp.ones((1, 3)), jnp.zeros((1, 3)))
    value, tangent = jax.jvp(jaxloss.safe_softmax_cross_entropy, *arguments)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(tangent, 0, atol=1e-6)


CERTAIN = np.array([-1e3, -200.0, -100.0, -40.0, 40.0, 100.0, 200.0, 1e3], np.float32)


@functools.partial(jax.jit, static_argnums=0)
def derivatives_of_focal_loss(gamma, logits, labels):
    def total(logits, labels):
        return jaxloss.sigmoid_focal_loss(logits, labels, gamma=gamma).sum()

    return jax.grad(total, (0, 1))(logits, labels), jax.hessian(total)(logits, labels)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("label", [0.0, 1e-25, 0.3, 1.0])
def test_focal_loss_has_no_nan(gamma, label):
    labels = np.full(CERTAIN.shape, label, np.float32)
    for found in jax.tree.leaves(derivatives_of_focal_loss(gamma, CERTAIN, labels)):
        assert np.all(np.isfinite(found))


def test_the_label_of_a_focal_loss_has_a_gradient_where_it_is_certain():
    """d/dy of (1 - p_t)^γ nll at y = 1 and a large x is -x (1 - p_t)^γ + γ (1 - p_t)^γ nll / …"""

    def loss(label, logit):
        return jaxloss.sigmoid_focal_loss(logit, label, gamma=1.0)

    p, q = 1 / (1 + np.exp(-20.0)), 1 / (1 + np.exp(20.0))
    wanted = -20 * q + (1 - 2 * p) * np.log1p(np.exp(-20.0))
    np.testing.assert_allclose(jax.grad(loss)(1.0, 20.0), wanted, rtol=1e-5)


def test_ctc_loss_with_forward_probs_is_not_below_0_and_has_no_stand_in_for_infinity():
    logits = jnp.where(jax.nn.one_hot(jnp.array([0, 1] * 20), 3) > 0, 0.0, -100.0)[None]
    paddings = jnp.zeros((1, 40)), jnp.ones((1, 20), int), jnp.zeros((1, 20))
    loss, blank, label = jaxloss.ctc_loss_with_forward_probs(logits, *paddings)
    assert loss >= 0
    assert blank[0, 0, 3] == -INF
    assert label[0, 0, 1] == -INF
    gradient = jax.grad(lambda x: jaxloss.ctc_loss_with_forward_probs(x, *paddings)[0].sum())
    assert np.all(np.isfinite(gradient(logits)))


@pytest.mark.parametrize(
    "reduce_fn", [jnp.mean, jnp.sum, lambda x, where: jnp.mean(x, where=where)]
)
def test_ranking_of_impossible_and_of_absent_items(reduce_fn):
    scores, labels = jnp.array([[1.0, -INF], [2.0, 1.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])

    def loss(scores, where=None):
        return jaxloss.ranking_softmax_loss(scores, labels, where=where, reduce_fn=reduce_fn)

    wanted = reduce_fn(jnp.array([0.0, np.log1p(np.e)]), where=None)
    np.testing.assert_allclose(loss(scores), wanted, rtol=1e-6)
    value, gradient = jax.value_and_grad(loss)(scores, jnp.zeros((2, 2), bool))
    assert value == 0
    assert not np.any(gradient)


def test_dice_loss_of_probabilities_that_are_traced_or_of_one_class():
    probabilities, targets = jnp.array([[0.9, 0.2]]), jnp.array([[1.0, 0.0]])

    @jax.jit
    def binary(p):
        return jaxloss.binary_dice_loss(p, targets, apply_sigmoid=False, smooth=0.0)

    np.testing.assert_allclose(binary(probabilities), 1 - 1.8 / 2.1, rtol=1e-5)


def test_dice_loss_of_an_almost_perfect_region_keeps_its_digits():
    logits, targets = jnp.full((1, 4), 18.0), jnp.ones((1, 4))
    loss = jaxloss.binary_dice_loss(logits, targets, smooth=0.0)
    np.testing.assert_allclose(loss, np.exp(-18.0) / 2, rtol=1e-5)


def test_an_absent_class_does_not_outweigh_the_others():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)), jnp.float32)
    targets = jax.nn.one_hot(jnp.array([[0, 1, 1, 0, 0], [1, 1, 0, 0, 1]]), 3)
    losses = jaxloss.multiclass_generalized_dice_loss(logits, targets, reduction="none")
    assert not np.any(losses[:, 2])
    assert np.all(np.asarray(losses[:, :2]) > 0.1)


def test_ntxent_without_positive_pairs_or_without_negatives():
    embeddings = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    for labels in (jnp.arange(4), jnp.zeros(4, int)):
        value, gradient = jax.value_and_grad(jaxloss.ntxent)(embeddings, labels)
        assert value == 0
        assert not np.any(gradient)


def test_ntxent_takes_no_array_of_all_pairs():
    """But of the pairs of a block of rows, an eighth of all."""
    count, size = 8192, 16
    shapes = jnp.ones((count, size)), jnp.zeros(count, int)
    program = hlo.compiled(jax.value_and_grad(jaxloss.ntxent), *shapes)
    assert hlo.temporaries(program) < 0.5 * 4 * count**2


def test_gradient_of_ntxent_takes_one_product_besides_the_scores():
    """The scores are made twice; rows and columns are one, as scores are symmetric."""
    shapes = jnp.ones((8192, 16)), jnp.zeros(8192, int)
    assert len(hlo.products(jax.value_and_grad(jaxloss.ntxent), *shapes)) == 3
    assert len(hlo.products(jaxloss.ntxent, *shapes)) == 1


@pytest.mark.parametrize("count", [182, 191], ids=["divisible", "prime"])
def test_blocks_of_ntxent_are_those_of_all_rows(count, monkeypatch):
    """A few examples among others that are masked, in several blocks, as these few alone."""
    # The size of blocks is no argument: so many examples no other test has.
    monkeypatch.setattr("jaxloss.core.contrastive.ntxent._BLOCK_SCORES", 2**15)
    rng = np.random.default_rng(0)
    few = np.sort(rng.permutation(count)[:12])
    embeddings, labels = rng.normal(size=(12, 4)), rng.integers(4, size=12)
    among, names, where = np.full((count, 4), np.nan), np.zeros(count, int), np.zeros(count, bool)
    among[few], names[few], where[few] = embeddings, labels, True

    def found(where, embeddings, labels):
        def loss(x):
            return jaxloss.ntxent(x, labels, 0.5, where=where)

        way = jnp.where(jnp.isnan(embeddings), 0, jnp.cos(jnp.arange(4.0, dtype=jnp.float32)))
        value, ahead = jax.jvp(loss, (embeddings,), (way,))
        gradient, over = jax.jvp(jax.grad(loss), (embeddings,), (way,))
        back = jax.grad(lambda x: jnp.sum(jax.grad(loss)(x) * way))(embeddings)
        return value, ahead, gradient, over, back

    alone = jax.jit(found)(np.ones(12, bool), np.float32(embeddings), labels)
    masked = jax.jit(found)(where, np.float32(among), names)
    for one, other in zip(alone, masked, strict=True):
        np.testing.assert_allclose(other[few] if other.ndim else other, one, rtol=1e-4, atol=1e-6)
    for gradient in masked[2:]:
        assert not np.any(np.asarray(gradient)[~where])


def test_smooth_labels_gives_nothing_to_masked_classes():
    labels, where = jnp.array([[1.0, 0.0, jnp.nan]]), jnp.array([[True, True, False]])
    smoothed = jaxloss.smooth_labels(labels, 0.2, where=where)
    np.testing.assert_allclose(smoothed, [[0.9, 0.1, 0.0]], rtol=1e-6)
