"""Forward mode, reverse mode and second order agree at infinite inputs.

An infinity times a tangent of 0 is NaN, in forward mode only."""

import dataclasses
import functools
import math

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
ROWS = [
    *OUTERMOST,
    *((loss, "core") for loss in TRACED),
    *((loss, "functional") for loss in WEIGHTED),
]

# The 2-norm of an infinite vector has no direction that could turn.
UNTURNED = ("distance_2.0", "triplet")


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
    args = loss.inputs(seed=3)

    def derivatives(position, args):
        def losses(x):
            found = loss.doors()[door](*args[:position], x, *args[position + 1 :])
            # Of several losses of an example the sum, unless each belongs to an element.
            return found if found.shape == x.shape else found.reshape(len(found), -1).sum(1)

        def gradient(x):
            return jax.grad(lambda x: losses(x).sum())(x)

        x = args[position]
        rows, *shape = x.shape
        own = int(np.prod(shape))
        # In each direction all examples move at once, each along the same one of its entries.
        directions = jnp.broadcast_to(jnp.eye(own).reshape(own, 1, *shape), (own, *x.shape))

        def forward(f):
            return jax.vmap(lambda t: jax.jvp(f, (x,), (t,)), out_axes=(None, 0))(directions)

        value, along = forward(losses)
        slope, bent = forward(gradient)
        whole = jax.jacrev(gradient)(x).reshape(rows, own, rows, own)
        return value, slope.reshape(rows, own), along, bent.reshape(own, rows, own), whole

    for position, a in enumerate(args):
        if a.dtype.kind != "f" or not (loss.rowwise or position == 0):
            continue
        compiled = jax.jit(functools.partial(derivatives, position))
        for value in (np.inf, -np.inf):
            found = compiled(with_infinities(args, position, value))
            losses, reverse, along, bent, whole = map(np.asarray, found)
            forward_reverse, reverse_reverse = (
                np.moveaxis(bent, 0, 1),
                np.einsum("rcrd->rdc", whole),
            )
            if along.ndim > 2:  # A loss for each element: the derivatives by its own entry.
                forward = np.einsum("crc->rc", along)
                forward_reverse = np.einsum("rcc->rc", forward_reverse)
                reverse_reverse = np.einsum("rcc->rc", reverse_reverse)
            else:
                # An entry with an infinite slope has its part in every direction.
                sound = np.isfinite(reverse).all(1) & ~np.isnan(losses)
                reverse, forward = reverse[sound], along.T[sound]
                forward_reverse, reverse_reverse = forward_reverse[sound], reverse_reverse[sound]
            what = f"argument {position}, {value}"
            agree(reverse, forward, what)
            if loss.name not in UNTURNED:
                agree(forward_reverse, reverse_reverse, what)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_modes_agree_in_reduce(reduction):
    losses, weights = jnp.array([np.inf, 1.0, 3.0, -np.inf]), jnp.array([0.0, 2.0, 1.0, 0.0])

    def total(losses, weights):
        return jaxloss.reduce(losses, reduction, weights=weights).sum()

    for argument in (0, 1):
        reverse, forward = (d(total, argument)(losses, weights) for d in (jax.grad, jax.jacfwd))
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


@pytest.mark.parametrize(("loss", "args", "value", "slopes"), LIMITS)
def test_limits(loss, args, value, slopes):
    args = [jnp.asarray(x, jnp.float32) for x in args]
    found = loss(*args)
    if value is None:
        assert jnp.isfinite(found)
    else:
        np.testing.assert_allclose(found, value, rtol=1e-6)
    for mode in (jax.grad, jax.jacfwd):
        for i, slope in enumerate(slopes):
            np.testing.assert_allclose(
                jnp.ravel(mode(loss, i)(*args)), [slope], rtol=1e-4, atol=1e-6
            )
