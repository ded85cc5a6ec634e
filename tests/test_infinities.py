"""Forward mode, reverse mode and second order agree at infinite inputs.

An infinity times a tangent of 0 is NaN, in forward mode only."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BY_NAME, OUTERMOST, WEIGHTS

import jaxloss

# Terms that a traced number, unlike a Python 0, does not leave out.
TRACED = [
    dataclasses.replace(BY_NAME[name], name=f"{name}, {', '.join(options)}", options=options)
    for name, options in [
        ("cross_entropy", {"label_smoothing": np.zeros(()), "z_loss": np.zeros(())}),
        ("cross_entropy", {"class_weights": np.array([0, 1, 2, 0, 0.5])}),
        ("cross_entropy_probabilities", {"label_smoothing": np.zeros(()), "z_loss": np.zeros(())}),
        ("cross_entropy_probabilities", {"class_weights": np.array([0, 1, 2, 0, 0.5])}),
        ("linear", {"label_smoothing": np.zeros(()), "class_weights": WEIGHTS * [0, 1, 1, 1, 1]}),
        ("bce_logits_pos_weight", {"pos_weight": np.array([0, 1, 2, 0, 0.5])}),
        ("multilabel_soft_margin", {"class_weights": np.array([0, 1, 2, 0, 0.5])}),
        ("multi_margin", {"class_weights": np.array([0, 1, 2, 0, 0.5])}),
    ]
]
WEIGHTED = [
    dataclasses.replace(BY_NAME[name], name=f"{name}, weighted", torch_options={"weight": weight})
    for name, weight in [
        ("nll", np.array([0, 1, 2, 0, 0.5])),
        ("cross_entropy", np.array([0, 1, 2, 0, 0.5])),
        ("bce_logits", np.arange(30.0).reshape(6, 5) % 3),
        ("bce", np.arange(30.0).reshape(6, 5) % 3),
        ("absolute_error", np.arange(30.0).reshape(6, 5) % 3),
    ]
]
# The 2-norm of an infinite vector has no direction that could turn.
UNTURNED = ("distance_2.0", "triplet")
# Here an infinity of one example is in the slopes of all: by these arguments none is finite.
SPREADING = {
    ("ntxent", 0),
    ("info_nce", 0),
    ("info_nce", 1),
    ("supervised_contrastive", 0),
    ("sigmoid_contrastive", 1),
}
ROWS = [
    # torch's door to transducers hands on to the core's rule.
    *(row for row in OUTERMOST if (str(row[0]), row[1]) != ("rnnt", "functional")),
    *((loss, "core") for loss in TRACED),
    *((loss, "functional") for loss in WEIGHTED),
]
ROWS = [(loss, door) for loss, door in ROWS if (loss.name, 0) not in SPREADING]


def with_infinities(args, position, value):
    """An infinite entry in every other row, of each class in turn; all of them in the last row."""
    x = np.array(args[position])
    flat = x.reshape(len(x), -1)
    for row in range(0, len(flat) - 1, 2):
        flat[row, row // 2 % flat.shape[1]] = value
    flat[-1] = value
    return (*args[:position], jnp.asarray(x), *args[position + 1 :])


def agree(one, other, what=""):
    finite = np.isfinite(one) | np.isfinite(other)
    one, other = (np.where(finite, x, 0) for x in (one, other))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=what)


@pytest.mark.parametrize(("loss", "door"), ROWS, ids=[f"{loss}-{door}" for loss, door in ROWS])
def test_modes_agree(loss, door):
    args, turned = loss.inputs(seed=3), loss.name not in UNTURNED

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(position, args, direction):
        def losses(x):
            found = loss.doors()[door](*args[:position], x, *args[position + 1 :])
            # Of several losses of an example the sum, unless each belongs to an element.
            return found if found.shape == x.shape else found.reshape(len(found), -1).sum(1)

        def gradient(x):
            return jax.grad(lambda x: losses(x).sum())(x)

        x = args[position]
        value, along = jax.jvp(losses, (x,), (direction,))
        if not turned:
            return value, gradient(x), along
        slope, bent = jax.jvp(gradient, (x,), (direction,))
        return value, slope, along, bent, jax.vjp(gradient, x)[1](direction)[0]

    for position, a in enumerate(args):
        if a.dtype.kind != "f" or not (loss.rowwise or position == 0):
            continue
        if (loss.name, position) in SPREADING:
            continue
        rows, *shape = a.shape
        own, compared = int(np.prod(shape)), 0
        # In each direction all examples move at once, each along the same one of its entries.
        directions = np.eye(own, dtype=np.float32).reshape(own, 1, *shape).repeat(rows, 1)
        for value in (np.inf, -np.inf):
            given = with_infinities(args, position, value)
            found = [derivatives(position, given, direction) for direction in directions]
            losses, slopes, along, *second = map(np.stack, zip(*found, strict=True))
            losses, reverse = losses[0], slopes[0].reshape(rows, own)
            # By example, the direction, and the entry of the gradient.
            bent = [x.reshape(own, rows, own) for x in second]
            if turned:
                bent = [np.moveaxis(x, 0, place) for x, place in zip(bent, (1, 2), strict=True)]
            if along.ndim > 2:  # A loss for each element: the derivatives by its own entry.
                forward = np.einsum("crc->rc", along.reshape(own, rows, own))
                bent = [np.einsum("rcc->rc", x) for x in bent]
            else:
                # An entry with an infinite slope has its part in every direction.
                sound = np.isfinite(reverse).all(1) & ~np.isnan(losses)
                reverse, forward, *bent = (x[sound] for x in (reverse, along.T, *bent))
            what = f"argument {position}, {value}"
            agree(reverse, forward, what)
            if turned:
                agree(*bent, what=what)
            compared += reverse.size
        assert compared, position


@pytest.mark.parametrize("name", ["distance_2.0", "triplet", "cosine_similarity"])
def test_directions_in_a_batch(name):
    """There a norm's branches are both computed, and one is selected."""
    loss = BY_NAME[name]
    x, *others = with_infinities(loss.inputs(seed=3), 0, np.inf)
    directions = np.eye(x.shape[1], dtype=np.float32)[:, None].repeat(len(x), 1)

    def losses(x):
        return loss.losses(x, *others)

    def along(direction):
        gradient = jax.grad(lambda x: losses(x).sum())
        return [jax.jvp(f, (x,), (direction,))[1] for f in (losses, gradient)]

    batch, alone = jax.jit(jax.vmap(along))(directions), jax.lax.map(along, directions)
    chex.assert_trees_all_close(batch, alone, rtol=1e-5, atol=1e-6)
    assert np.isfinite(batch[0]).any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_modes_agree_in_reduce(reduction):
    losses = np.array([np.inf, 1.0, 3.0, -np.inf], np.float32)
    weights = np.array([0.0, 2.0, 1.0, 0.0], np.float32)

    def total(losses, weights):
        return jaxloss.reduce(losses, reduction, weights=weights).sum()

    @jax.jit
    def slopes(*args):
        return jax.grad(total, (0, 1))(*args), jax.jacfwd(total, (0, 1))(*args)

    for reverse, forward in zip(*slopes(losses, weights), strict=True):
        agree(reverse, forward)


inf = np.inf
LARGEST = float(np.finfo(np.float32).max)
G = jaxloss.gaussian_nll_loss
P = jaxloss.poisson_nll_loss
RATE = functools.partial(P, log_input=False)
FULL = functools.partial(P, full=True)
FULL_RATE = functools.partial(P, log_input=False, full=True)
# The loss, its arguments, its value, of which None says only that it is finite, and its slopes.
LIMITS = [
    *(
        (loss, (sign * inf, 2.0), inf, (sign * slope, -sign * slope))
        for sign in (1, -1)
        for loss, slope in [
            (jaxloss.absolute_error, 1),
            (jaxloss.squared_error, inf),
            (jaxloss.l2_loss, inf),
            (jaxloss.huber_loss, 1),
            (jaxloss.smooth_l1_loss, 1),
            (jaxloss.log_cosh, 1),
        ]
    ),
    *(
        (loss, (2.0, sign * inf), inf, (-sign * slope, sign * slope))
        for sign in (1, -1)
        for loss, slope in [(jaxloss.squared_error, inf), (jaxloss.l2_loss, inf)]
    ),
    (G, (inf, 2.0, 4.0), inf, (inf, -inf, -inf)),
    (G, (-inf, 2.0, 4.0), inf, (-inf, inf, -inf)),
    (G, (2.0, -inf, 4.0), inf, (inf, -inf, -inf)),
    (G, (2.0, 3.0, inf), inf, (0, 0, 0)),
    (P, (inf, 3.0), inf, (inf, -inf)),
    (P, (inf, 0.0), inf, (inf, 0)),
    (P, (inf, LARGEST), inf, (inf, -inf)),
    (P, (100.0, LARGEST), inf, (inf, -100)),
    (P, (-inf, 3.0), inf, (-3, inf)),
    (P, (-inf, 0.0), 0, (0, 0)),
    (RATE, (inf, 3.0), inf, (1, -inf)),
    (RATE, (inf, 0.0), inf, (1, 0)),
    (FULL, (inf, 3.0), inf, (inf, -inf)),
    (FULL, (1.0, LARGEST), inf, (-LARGEST, 87.722839)),
    (FULL, (88.0, 2.0**127), None, (-4.977558e36, 0.029692)),
    (FULL_RATE, (inf, 3.0), inf, (1, -inf)),
    (FULL_RATE, (2.0**125, 2.0**125), None, (0, 0)),
    (FULL_RATE, (8e37, LARGEST), None, (1 - LARGEST / 8e37, 1.447749)),
    (jaxloss.generalized_kl_divergence, ([inf], [3.0]), inf, (inf, -inf)),
    (jaxloss.generalized_kl_divergence, ([100.0], [LARGEST]), inf, (inf, math.log(LARGEST) - 100)),
    (jaxloss.generalized_kl_divergence, ([-inf], [3.0]), inf, (-3, inf)),
]


@functools.cache
def value_and_slopes(loss, count):
    """By each argument alone, since the slope by another may be infinite; in either mode."""
    slopes = [mode(loss, i) for mode in (jax.grad, jax.jacfwd) for i in range(count)]
    return jax.jit(lambda *args: (loss(*args), [slope(*args) for slope in slopes]))


@pytest.mark.parametrize(("loss", "args", "value", "slopes"), LIMITS)
def test_limits(loss, args, value, slopes):
    args = [np.asarray(x, np.float32) for x in args]
    found, slopes_found = value_and_slopes(loss, len(slopes))(*args)
    if value is None:
        assert np.isfinite(found)
    else:
        np.testing.assert_allclose(found, value, rtol=1e-6)
    for got, slope in zip(slopes_found, 2 * slopes, strict=True):
        np.testing.assert_allclose(np.ravel(got), [slope], rtol=1e-4, atol=1e-6)
