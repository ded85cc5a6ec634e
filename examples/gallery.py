"""Draws the losses and their gradients.

python examples/gallery.py --out out/gallery

Losses are solid, derivatives dashed; arrows point down the gradient.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import time
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from gallery_panels import Panel, Surface, beyond_torch, cross_entropy, elementwise, margins
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
    columns = min(COLUMNS, len(panels))
    rows = len(panels) // columns
    size = 4 * columns, 3.5 * rows
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained")
    furthest = 0.0
    for axes, panel in zip(np.ravel(grid), panels, strict=True):
        axes.set_title(panel.title, fontweight="bold")
        if isinstance(panel, Panel):
            furthest = max(furthest, draw_curves(axes, panel, points))
        else:
            draw_surface(axes, panel, points)
    if legend:
        figure.legend(handles=legend, loc="outside lower center", ncols=len(legend))
    return figure, furthest


def draw_sequences(seed: int) -> dict[str, Figure]:
    """A noisy network's frames under both losses of labels without times."""
    symbols = ["blank", *sorted({*SPOKEN}), "c", "d"]
    labels = jnp.array([symbols.index(symbol) for symbol in SPOKEN])
    rng = np.random.default_rng(seed)
    logits = NOISE * rng.standard_normal((FRAMES, len(symbols)))
    times = FRAMES * (np.arange(len(SPOKEN)) + 0.7) / (len(SPOKEN) + 0.4)
    for moment, label in zip(times, np.asarray(labels), strict=True):
        logits[:, label] += 4 * np.exp(-(((np.arange(FRAMES) - moment) / 2) ** 2))
    logits[:, 0] += 1.5
    logits = jnp.asarray(logits, jnp.float32)
    return {"ctc": draw_ctc(logits, labels, symbols), "rnnt": draw_rnnt(logits, labels)}


def draw_ctc(logits: jax.Array, labels: jax.Array, symbols: Sequence[str]) -> Figure:
    """What the network says, where CTC finds the labels in it, and the gradient."""
    rest = jnp.zeros(FRAMES), labels, jnp.zeros(len(SPOKEN))
    loss, gradient = jax.jit(jax.value_and_grad(jaxloss.ctc_loss))(logits, *rest)
    alignment = jaxloss.ctc_alignment(logits, *rest)
    return draw_heat_maps(
        {
            f"Softmax of the logits; the loss of “{SPOKEN}” is {loss:.2f} nats": (
                jax.nn.softmax(logits),
                symbols,
            ),
            "ctc_alignment: posterior of each label, the rest is blank": (
                alignment,
                [f"{n}: {symbol}" for n, symbol in enumerate(SPOKEN, 1)],
            ),
            "Gradient of ctc_loss: red falls with a step down, blue rises": (gradient, symbols),
        },
        "symbol",
    )


def draw_rnnt(logits: jax.Array, labels: jax.Array) -> Figure:
    """What a transducer says that sees these frames, and the gradient, over its lattice."""
    # Its other half knows the word: it expects the next label, or none yet.
    expected = 2 * jnp.eye(logits.shape[1])[jnp.append(labels, 0)].at[:, 0].set(2)
    joint = logits[:, None] + expected[None]
    rest = jnp.zeros(FRAMES), labels, jnp.zeros(len(SPOKEN))
    loss, gradient = jax.jit(jax.value_and_grad(jaxloss.rnnt_loss))(joint, *rest)
    steps = jnp.arange(len(SPOKEN))
    said = [f"“{SPOKEN[:n]}”" for n in range(len(SPOKEN) + 1)]
    return draw_heat_maps(
        {
            f"Softmax of the next label; the loss of “{SPOKEN}” is {loss:.2f} nats": (
                jax.nn.softmax(joint)[:, steps, labels],
                said[:-1],
            ),
            "Gradient of rnnt_loss by the next label: red falls with a step down, blue rises": (
                gradient[:, steps, labels],
                said[:-1],
            ),
            "Gradient of rnnt_loss by blank, which goes on to the next frame": (
                gradient[..., 0],
                said,
            ),
        },
        "said before",
    )


def draw_heat_maps(maps: Mapping[str, tuple[jax.Array, Sequence[str]]], what: str) -> Figure:
    """Probabilities and gradients over the frames and named rows, by their titles."""
    figure, grid = plt.subplots(len(maps), 1, figsize=(10, 9), sharex=True, layout="constrained")
    for axes, (title, (image, names)) in zip(grid, maps.items(), strict=True):
        is_gradient = title.startswith("Gradient")
        limit = float(jnp.max(jnp.abs(image))) if is_gradient else 1
        low, colors = (-limit, "RdBu_r") if is_gradient else (0, "Blues")
        heat = axes.imshow(image.T, aspect="auto", vmin=low, vmax=limit, cmap=colors)
        axes.set_yticks(range(len(names)), names)
        axes.set_title(title, fontweight="bold")
        axes.set_ylabel("label" if title.startswith("ctc_alignment") else what)
        unit = "gradient by logit" if is_gradient else "probability"
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
        "beyond_torch": (beyond_torch(), LEGEND),
    }
    for name, (panels, legend) in tqdm(pictures.items(), unit="picture", disable=None):
        figure, distance = draw_panels(panels, legend, points)
        save(figure, args.out / f"{name}.png")
        furthest = max(furthest, distance)
    for name, figure in draw_sequences(args.seed).items():
        figure.savefig(args.out / f"{name}.png", dpi=100)
    seconds = time.perf_counter() - start
    print(
        f"derivatives within {furthest:.1e} of the slopes of the curves,"
        f" in {seconds:.0f} s; pictures: {args.out}"
    )


if __name__ == "__main__":
    main()
