"""What the gallery shows: losses as curves and surfaces, a table for each picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss


class Curve(NamedTuple):
    label: str
    loss: Callable[[jax.Array], jax.Array]
    kinks: Sequence[float] = ()


class Panel(NamedTuple):
    title: str
    label: str
    span: tuple[float, float]
    curves: Sequence[Curve]
    unit: str = "nats"  # Of the loss.


class Surface(NamedTuple):
    title: str
    labels: tuple[str, str]
    span: tuple[float, float]
    loss: Callable[[jax.Array, jax.Array], jax.Array]


def of_error(title: str, unit: str, curves: Sequence[Curve]) -> Panel:
    return Panel(title, "error: prediction − target", (-3, 3), curves, unit)


def elementwise() -> list[Panel]:
    def gaussian(error, variance) -> jax.Array:
        return jaxloss.gaussian_nll_loss(error, jnp.zeros_like(error), variance)

    def pair(p: jax.Array) -> jax.Array:
        return jnp.stack([p, 1 - p])

    def divergence(t: float) -> Curve:
        target = jnp.array([t, 1 - t])
        return Curve(f"target {t:g}", lambda p: jaxloss.kl_divergence(jnp.log(pair(p)), target))

    def binary(loss: Callable[..., jax.Array], **options: float) -> list[Curve]:
        return [
            Curve("label 1", lambda x: loss(x, 1.0, **options)),
            Curve("label 0", lambda x: loss(x, 0.0, **options)),
        ]

    sigmoid = jaxloss.sigmoid_binary_cross_entropy
    return [
        of_error("Absolute error", "unit of the target", [Curve("", jaxloss.absolute_error, [0])]),
        of_error(
            "Squared error", "unit of the target, squared", [Curve("", jaxloss.squared_error)]
        ),
        of_error(
            "Huber loss",
            "unit of the target, squared",
            [
                Curve(f"δ = {d:g}", lambda e, d=d: jaxloss.huber_loss(e, delta=d), [-d, d])
                for d in (0.5, 1, 2)
            ],
        ),
        of_error(
            "Smooth L1 loss",
            "unit of the target",
            [
                Curve(f"β = {b:g}", lambda e, b=b: jaxloss.smooth_l1_loss(e, beta=b), [-b, b])
                for b in (0.5, 1, 2)
            ],
        ),
        of_error(
            "Gaussian NLL over the error",
            "nats",
            [Curve(f"variance {v:g}", lambda e, v=v: gaussian(e, v)) for v in (0.5, 1, 4)],
        ),
        Panel(
            "Gaussian NLL over the variance",
            "variance, unit of the target, squared",
            (0.15, 4),
            [Curve(f"error {e:g}", lambda v, e=e: gaussian(jnp.float32(e), v)) for e in (0, 1, 2)],
        ),
        Panel(
            "Poisson NLL",
            "log of the expected count",
            (-2, 2),
            [
                Curve(f"count {y}", lambda x, y=y: jaxloss.poisson_nll_loss(x, float(y)))
                for y in (0, 1, 4)
            ],
        ),
        Panel(
            "KL divergence of two outcomes",
            "predicted probability",
            (0.03, 0.97),
            [divergence(t) for t in (0.1, 0.5, 1)],
        ),
        Panel(
            "Binary cross entropy",
            "predicted probability",
            (0.06, 0.94),
            binary(jaxloss.binary_cross_entropy),
        ),
        Panel(
            "Sigmoid binary cross entropy",
            "logit, nats",
            (-4, 4),
            [
                *binary(sigmoid),
                Curve("label 1, pos_weight 2", lambda x: sigmoid(x, 1.0, pos_weight=2.0)),
            ],
        ),
        Panel(
            "Soft margin loss",
            "score",
            (-4, 4),
            [
                Curve(f"target {y}", lambda x, y=y: jaxloss.soft_margin_loss(x, float(y)))
                for y in (1, -1)
            ],
        ),
        Panel(
            "Hinge embedding loss, margin 1",
            "distance",
            (0, 2),
            [
                Curve("similar (1)", lambda d: jaxloss.hinge_embedding_loss(d, 1.0)),
                Curve("dissimilar (−1)", lambda d: jaxloss.hinge_embedding_loss(d, -1.0), [1]),
            ],
            "unit of the distance",
        ),
    ]


def margins() -> list[Panel | Surface]:
    zero = jnp.zeros(())

    def at(angle: jax.Array) -> jax.Array:
        return jnp.stack([jnp.cos(angle), jnp.sin(angle)])

    def cosine(label: str, target: float, margin: float, *kinks: float) -> Curve:
        def loss(angle: jax.Array) -> jax.Array:
            return jaxloss.cosine_embedding_loss(
                at(angle), jnp.array([1.0, 0.0]), target, margin=margin
            )

        # No float32 is exactly at these kinks; just before, the derivative is the one at them.
        return Curve(label, loss, [kink * (1 - 1e-6) for kink in kinks])

    def distance(name: str, p: float, *kinks: float) -> Curve:
        return Curve(
            f"p = {name}",
            lambda angle: jaxloss.pairwise_distance(at(angle), 0 * at(angle), p=p),
            kinks,
        )

    def multi_margin(a: jax.Array, b: jax.Array, p: int) -> jax.Array:
        return jaxloss.multi_margin_loss(jnp.stack([zero, a, b]), 0, p=p)

    def multilabel_margin(a: jax.Array, b: jax.Array) -> jax.Array:
        return jaxloss.multilabel_margin_loss(jnp.stack([a, b, zero]), jnp.array([0, 1, -1]))

    def triplet(positive: jax.Array, negative: jax.Array) -> jax.Array:
        points = jnp.stack([positive, zero]), jnp.stack([zero, negative])
        return jaxloss.triplet_margin_loss(jnp.zeros(2), *points)

    def anchor(a: jax.Array, b: jax.Array) -> jax.Array:
        positive, negative = jnp.array([-1.0, 0.0]), jnp.array([1.0, 0.0])
        return jaxloss.triplet_margin_loss(jnp.stack([a, b]), positive, negative)

    def similarity(a: jax.Array, b: jax.Array) -> jax.Array:
        return jaxloss.cosine_similarity(jnp.stack([a, b]), jnp.array([1.0, 0.0]), eps=0.5)

    others = "score of class 1 − label's", "score of class 2 − label's"
    coordinates = "first coordinate", "second coordinate"
    return [
        Surface(
            "Margin ranking, margin 0.5",
            ("first score", "second score"),
            (-2, 2),
            lambda a, b: jaxloss.margin_ranking_loss(a, b, 1.0, margin=0.5),
        ),
        Surface("Multi margin, p = 1", others, (-3, 1), lambda a, b: multi_margin(a, b, 1)),
        Surface("Multi margin, p = 2", others, (-3, 1), lambda a, b: multi_margin(a, b, 2)),
        Surface(
            "Multilabel margin, labels 0 and 1",
            ("score of class 0 − class 2's", "score of class 1 − class 2's"),
            (-1, 3),
            multilabel_margin,
        ),
        Surface(
            "Triplet margin over the distances",
            ("anchor to positive", "anchor to negative"),
            (0.05, 3),
            triplet,
        ),
        Surface("Triplet margin over the anchor", coordinates, (-2, 2), anchor),
        Panel(
            "Cosine embedding loss",
            "angle, radians",
            (0, np.pi),
            [
                cosine("similar (1)", 1.0, 0.0),
                cosine("dissimilar (−1)", -1.0, 0.0, np.pi / 2),
                cosine("dissimilar, margin 0.5", -1.0, 0.5, np.pi / 3),
            ],
            "difference of cosines",
        ),
        Panel(
            "Pairwise distance from 0",
            "direction of a unit vector, radians",
            (0.02, np.pi / 2 - 0.02),
            [distance("1", 1.0), distance("2", 2.0), distance("∞", np.inf, np.pi / 4)],
            "length of the vector",
        ),
        Surface("Cosine similarity to (1, 0), eps = 0.5", coordinates, (-2, 2), similarity),
    ]


def cross_entropy() -> list[Panel | Surface]:
    entropy = jaxloss.softmax_cross_entropy_with_integer_labels

    def logits(x: jax.Array) -> jax.Array:
        return jnp.stack([x, 0 * x, 0 * x])

    def of_logit(title: str, names: Sequence[str], losses) -> Panel:
        curves = [Curve(name, loss) for name, loss in zip(names, losses, strict=True)]
        return Panel(title, "logit of the label, the others 0", (-5, 7), curves)

    def smoothed(values) -> list[Callable[[jax.Array], jax.Array]]:
        return [lambda x, v=v: entropy(logits(x), 0, label_smoothing=v) for v in values]

    def weighted(x: jax.Array, weight: float) -> jax.Array:
        return entropy(logits(x), 0, class_weights=jnp.array([weight, 1.0, 1.0]))

    def focal(x: jax.Array, gamma: int) -> jax.Array:
        return jaxloss.softmax_focal_loss_with_integer_labels(logits(x), 0, gamma=gamma)

    def soft(x: jax.Array, label: float) -> jax.Array:
        rest = (1 - label) / 2
        return jaxloss.softmax_cross_entropy(logits(x), jnp.array([label, rest, rest]))

    smoothings, weights, gammas, soft_labels = (0, 0.1, 0.3), (0.5, 1, 2), (0, 1, 2), (1, 0.7, 0.4)
    return [
        of_logit(
            "Label smoothing",
            [f"{e:g}" for e in smoothings],
            smoothed(smoothings),
        ),
        of_logit(
            "Weight of the label's class",
            [f"{w:g}" for w in weights],
            [lambda x, w=w: weighted(x, w) for w in weights],
        ),
        of_logit(
            "Focal: times (1 − p)^γ",
            [f"γ = {g}" for g in gammas],
            [lambda x, g=g: focal(x, g) for g in gammas],
        ),
        of_logit(
            "Class probabilities",
            [f"label {y:g}" for y in soft_labels],
            [lambda x, y=y: soft(x, y) for y in soft_labels],
        ),
        Panel(
            "z-loss pulls log Σ exp to 0",
            "number added to all logits",
            (-5, 5),
            [
                Curve(f"{z:g}", lambda s, z=z: entropy(logits(0 * s) + s, 0, z_loss=z))
                for z in (0, 0.02, 0.1)
            ],
        ),
        Surface(
            "Two logits, the label's is 0",
            ("logit of class 1", "logit of class 2"),
            (-4, 4),
            lambda a, b: entropy(jnp.stack([jnp.zeros(()), a, b]), 0),
        ),
    ]


def beyond_torch() -> list[Panel | Surface]:
    def of_label(loss: Callable[..., jax.Array]) -> Callable[[jax.Array, jax.Array], jax.Array]:
        return lambda a, b: loss(jnp.stack([jnp.zeros(()), a, b]), 0)

    def ranking(a: jax.Array, b: jax.Array) -> jax.Array:
        scores, relevance = jnp.stack([a, b, jnp.zeros(())]), jnp.array([2.0, 1.0, 0.0])
        return jaxloss.ranking_softmax_loss(scores, relevance, reduce_fn=None)

    def dice(p: jax.Array, size: int, smooth: float) -> jax.Array:
        region = jnp.ones((1, size))
        return jaxloss.binary_dice_loss(p * region, region, smooth=smooth, apply_sigmoid=False)[0]

    def tversky(found: jax.Array, alarms: jax.Array) -> jax.Array:
        """Of a region of one pixel beside another pixel."""
        pixels, truth = jnp.stack([found, alarms])[None], jnp.array([[1.0, 0.0]])
        options = {"smooth": 0.0, "apply_softmax": False}
        losses = jaxloss.tversky_loss(pixels[..., None], truth, alpha=0.3, beta=0.7, **options)
        return losses[0]

    def contrast(angle: jax.Array, temperature: float) -> jax.Array:
        angles = jnp.stack([0 * angle, angle, jnp.pi / 2 + 0 * angle])
        points = jnp.stack([jnp.cos(angles), jnp.sin(angles)], -1)
        return jaxloss.ntxent_per_example(points, jnp.array([0, 0, 1]), temperature)[0]

    def poly(x: jax.Array, epsilon: float) -> jax.Array:
        logits, labels = jnp.stack([x, 0 * x, 0 * x]), jnp.array([1.0, 0.0, 0.0])
        return jaxloss.poly_loss_cross_entropy(logits, labels, epsilon=epsilon)

    def divergence(x: jax.Array, target: float) -> jax.Array:
        return jaxloss.generalized_kl_divergence(x[None], jnp.array([target]))

    others = "score of class 1 − label's", "score of class 2 − label's"
    return [
        of_error(
            "L2 loss and log-cosh",
            "loss",
            [Curve("L2", jaxloss.l2_loss), Curve("log-cosh", jaxloss.log_cosh)],
        ),
        Panel(
            "Generalized KL divergence",
            "log of the prediction",
            (-2, 2),
            [Curve(f"target {t:g}", lambda x, t=t: divergence(x, t)) for t in (0, 1, 3)],
        ),
        Panel(
            "Two classes, the target is 1",
            "score",
            (-2, 2),
            [
                Curve("hinge", lambda x: jaxloss.hinge_loss(x, 1.0), [1]),
                Curve("perceptron", lambda x: jaxloss.perceptron_loss(x, 1.0), [0]),
                Curve("sparsemax", lambda x: jaxloss.sparsemax_loss(x, 1.0)),
            ],
            "unit of the score",
        ),
        Surface("Multiclass hinge", others, (-3, 1), of_label(jaxloss.multiclass_hinge_loss)),
        Surface(
            "Multiclass perceptron", others, (-2, 2), of_label(jaxloss.multiclass_perceptron_loss)
        ),
        Surface(
            "Multiclass sparsemax", others, (-2, 2), of_label(jaxloss.multiclass_sparsemax_loss)
        ),
        Panel(
            "Sigmoid focal loss, label 1",
            "logit, nats",
            (-4, 4),
            [
                Curve(f"γ = {g}", lambda x, g=g: jaxloss.sigmoid_focal_loss(x, 1.0, gamma=g))
                for g in (0, 1, 3)
            ],
        ),
        Panel(
            "Poly loss: cross entropy + ε (1 − p)",
            "logit of the label, the others 0",
            (-5, 7),
            [
                Curve(f"ε = {name}", lambda x, e=e: poly(x, e))
                for name, e in (("−1", -1), ("0", 0), ("2", 2))
            ],
        ),
        Surface(
            "Ranking softmax, relevance 2, 1 and 0",
            ("score of 2 − score of 0", "score of 1 − score of 0"),
            (-3, 3),
            ranking,
        ),
        Panel(
            "Dice loss of a region alone",
            "probability of each of its pixels",
            (0, 1),
            [
                Curve("smooth 0", lambda p: dice(p, 1, 0.0)),
                Curve("smooth 1, 10 pixels", lambda p: dice(p, 10, 1.0)),
                Curve("smooth 1, 1 pixel", lambda p: dice(p, 1, 1.0)),
            ],
            "1 less the overlap",
        ),
        Surface(
            "Tversky loss, α = 0.3, β = 0.7",
            ("share of the region that is found", "false alarms by the region"),
            (0.05, 1),
            tversky,
        ),
        Panel(
            "NT-Xent beside a stranger at π/2",
            "angle between the two of a kind, radians",
            (0, np.pi),
            [Curve(f"temperature {t:g}", lambda a, t=t: contrast(a, t)) for t in (0.5, 1, 2)],
        ),
    ]
