"""Draws the losses and their gradients.

python examples/gallery.py --out out/gallery

Losses are solid, derivatives dashed; arrows point down the gradient.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from PIL import Image
from tqdm import tqdm

import jaxloss

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

LEGEND = [
    Line2D([], [], color="black", label="loss"),
    Line2D([], [], color="black", linestyle="--", label="derivative"),
    Line2D([], [], color="black", marker="o", ms=5, linestyle="", label="kink"),
    Line2D([], [], color="black", marker="o", ms=9, ls="", mfc="white", label="derivative there"),
    Line2D([], [], color="tab:orange", linewidth=2, label="the loss becomes 0"),
]
COLUMNS = 3
ARROWS = 11  # Along each side of a surface.
FRAMES = 40
SPOKEN = "abba"  # The same symbol twice needs a blank between.
NOISE = 0.8


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
        loss = entropy(logits(x), 0)
        return (-jnp.expm1(-loss)) ** gamma * loss

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


def draw_curves(axes, panel: Panel, points: int) -> float:
    """The losses with their derivatives; how far these are from the slopes of the losses."""
    kinks = sorted({kink for curve in panel.curves for kink in curve.kinks})
    gap = 1e-4 * np.ptp(panel.span)
    ends = itertools.pairwise([panel.span[0], *kinks, panel.span[1]])
    # Derivatives may jump at kinks; NaN breaks the lines there.
    between = [[*np.linspace(low + gap, high - gap, points), np.nan] for low, high in ends]
    x = np.asarray([*itertools.chain(*between), *kinks], np.float32)
    line = slice(len(x) - len(kinks))

    @jax.jit
    def derive(x: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        return [jax.vmap(jax.value_and_grad(curve.loss))(x) for curve in panel.curves]

    furthest = largest = 0.0
    for n, (curve, results) in enumerate(zip(panel.curves, derive(jnp.asarray(x)), strict=True)):
        loss, derivative = np.asarray(results)
        axes.plot(x[line], loss[line], color=f"C{n}", linewidth=2, label=curve.label)
        axes.plot(x[line], derivative[line], "--", color=f"C{n}")
        own = [line.stop + kinks.index(kink) for kink in curve.kinks]
        axes.plot(x[own], derivative[own], "o", color=f"C{n}", ms=9, mfc="white", zorder=3)
        axes.plot(x[own], loss[own], "o", color=f"C{n}", ms=5, zorder=4)
        slope = np.diff(loss[line]) / np.diff(x[line])
        middle = (derivative[line][1:] + derivative[line][:-1]) / 2
        scale = max(1, np.nanmax(np.abs(derivative)))
        furthest = max(furthest, float(np.nanmax(np.abs(slope - middle)) / scale))
        largest = max(largest, np.nanmax(np.abs(loss)))
    axes.axhline(0, color="gray", linewidth=0.6)
    # Where derivatives grow without bound, the loss should still be seen.
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -1.1 * largest), min(high, 1.1 * largest))
    axes.set_xlabel(panel.label)
    axes.set_ylabel(panel.unit)
    if len(panel.curves) > 1:
        axes.legend(handlelength=1, framealpha=0.7)
    return furthest


def draw_surface(axes, surface: Surface, points: int) -> None:
    """Contours of the loss with arrows, and the border of where it is 0."""
    edge = np.ptp(surface.span) / ARROWS / 2
    x = np.linspace(*surface.span, points)
    tails = np.linspace(surface.span[0] + edge, surface.span[1] - edge, ARROWS)
    grids = [np.stack(np.meshgrid(side, side)).reshape(2, -1) for side in (x, tails)]
    derive = jax.jit(jax.vmap(jax.value_and_grad(surface.loss, (0, 1))))
    loss, gradients = derive(*jnp.asarray(np.concatenate(grids, 1), jnp.float32))
    loss = loss[: points**2].reshape(points, points)
    right, up = (gradient[points**2 :].reshape(ARROWS, ARROWS) for gradient in gradients)
    filled = axes.contourf(x, x, loss, levels=12, cmap="Blues")
    colorbar = axes.figure.colorbar(filled, ax=axes, label="loss")
    colorbar.locator = MaxNLocator(5)
    if np.min(loss) == 0:
        axes.contour(x, x, loss > 0, levels=[0.5], colors="tab:orange", linewidths=2)
    axes.quiver(tails, tails, -right, -up, color="black", pivot="mid", width=0.005)
    axes.set_xlabel(surface.labels[0])
    axes.set_ylabel(surface.labels[1])


def draw_panels(
    panels: Sequence[Panel | Surface], legend: Sequence[Line2D], points: int
) -> tuple[Figure, float]:
    """A figure of all panels, and how far derivatives are from the slopes of the curves."""
    rows = len(panels) // COLUMNS
    size = 4 * COLUMNS, 3.5 * rows
    figure, grid = plt.subplots(rows, COLUMNS, figsize=size, layout="constrained")
    furthest = 0.0
    for axes, panel in zip(np.ravel(grid), panels, strict=True):
        axes.set_title(panel.title, fontweight="bold")
        if isinstance(panel, Panel):
            furthest = max(furthest, draw_curves(axes, panel, points))
        else:
            draw_surface(axes, panel, points)
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend))
    return figure, furthest


def draw_ctc(seed: int) -> Figure:
    """What a noisy network says, where CTC finds the labels in it, and the gradient."""
    symbols = ["blank", *sorted({*SPOKEN}), "c", "d"]
    labels = jnp.array([symbols.index(symbol) for symbol in SPOKEN])
    rng = np.random.default_rng(seed)
    logits = NOISE * rng.standard_normal((FRAMES, len(symbols)))
    times = FRAMES * (np.arange(len(SPOKEN)) + 0.7) / (len(SPOKEN) + 0.4)
    for moment, label in zip(times, np.asarray(labels), strict=True):
        logits[:, label] += 4 * np.exp(-(((np.arange(FRAMES) - moment) / 2) ** 2))
    logits[:, 0] += 1.5
    rest = jnp.zeros(FRAMES), labels, jnp.zeros(len(SPOKEN))
    logits = jnp.asarray(logits, jnp.float32)
    loss, gradient = jax.jit(jax.value_and_grad(jaxloss.ctc_loss))(logits, *rest)
    alignment = jaxloss.ctc_alignment(logits, *rest)

    figure, grid = plt.subplots(3, 1, figsize=(10, 9), sharex=True, layout="constrained")
    rows = symbols, [f"{n}: {symbol}" for n, symbol in enumerate(SPOKEN, 1)], symbols
    images = jax.nn.softmax(logits), alignment, gradient
    titles = (
        f"Softmax of the logits; the loss of “{SPOKEN}” is {loss:.2f} nats",
        "ctc_alignment: posterior of each label, the rest is blank",
        "Gradient of ctc_loss: red falls with a step down, blue rises",
    )
    units = "probability", "probability", "gradient by logit"
    for axes, image, names, title, unit in zip(grid, images, rows, titles, units, strict=True):
        limit = 1 if image is not gradient else float(jnp.max(jnp.abs(gradient)))
        low, colors = (-limit, "RdBu_r") if image is gradient else (0, "Blues")
        heat = axes.imshow(image.T, aspect="auto", vmin=low, vmax=limit, cmap=colors)
        axes.set_yticks(range(len(names)), names)
        axes.set_title(title, fontweight="bold")
        axes.set_ylabel("label" if names is rows[1] else "symbol")
        figure.colorbar(heat, ax=axes, label=unit)
    grid[-1].set_xlabel("frame")
    return figure


def save(figure: Figure, path: pathlib.Path) -> None:
    """In so few colours that the picture is a small file."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("examples/gallery"))
    parser.add_argument("--quick", action="store_true", help="fewer points")
    args = parser.parse_args()

    start = time.perf_counter()
    plt.rcParams["font.size"] = 11
    args.out.mkdir(parents=True, exist_ok=True)
    points = 201 if args.quick else 401
    furthest = 0.0
    pictures = {
        "elementwise": (elementwise(), LEGEND[:4]),
        "margins": (margins(), LEGEND),
        "cross_entropy": (cross_entropy(), LEGEND[:2]),
    }
    for name, (panels, legend) in tqdm(pictures.items(), unit="picture", disable=None):
        figure, distance = draw_panels(panels, legend, points)
        save(figure, args.out / f"{name}.png")
        furthest = max(furthest, distance)
    draw_ctc(args.seed).savefig(args.out / "ctc.png", dpi=100)
    seconds = time.perf_counter() - start
    print(
        f"derivatives within {furthest:.1e} of the slopes of the curves,"
        f" in {seconds:.0f} s; pictures: {args.out}"
    )


if __name__ == "__main__":
    main()
