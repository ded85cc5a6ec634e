"""Finds the ink of a whole digit among pieces of others, with Dice + focal and with cross entropy.

python examples/segment_digits.py --seed 1

One pixel in sixty belongs to a whole digit: a network that finds nothing is right almost always.
"""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import jaxloss.nnx

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

SIZE = 8  # Pixels of a digit, either way.
SIDE = 40  # Of a canvas.
PIECES, PIECE = 16, 4  # How many pieces of digits clutter a canvas, and their side.
NOISE = 0.1
INK = 0.25  # More than this of a pixel's points are ink.
BATCH = 16
STEPS = 50  # Batches in an epoch; every one is new.
TEST_CANVASES = 200
SHOWN = 3

binary = jaxloss.nnx.BCEWithLogitsLoss()
dice, focal = jaxloss.nnx.DiceLoss(batch=True), jaxloss.nnx.FocalLoss()
# Of logits and truth, both (N, 1, SIDE, SIDE). Focal losses are small: the weight is that of
# Segment Anything.
LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "cross entropy": lambda logits, truth: binary(logits, truth),
    "Dice + focal": lambda logits, truth: dice(logits, truth) + 20 * focal(logits, truth),
}


class Canvases(NamedTuple):
    images: np.ndarray  # (N, SIDE, SIDE), ink is 1.
    truth: np.ndarray  # Whether a pixel is of the whole digit.


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 16, (4, 4), strides=2, rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), rngs=rngs)
        self.conv3 = nnx.Conv(32, 32, (3, 3), kernel_dilation=2, rngs=rngs)
        self.head = nnx.Conv(32, 4, (3, 3), rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(images[..., None]))))
        x = self.head(nnx.relu(self.conv3(x)))
        blocks = x.reshape(*x.shape[:3], 2, 2)  # Of the pixels that `conv1` has put together.
        return jnp.swapaxes(blocks, 2, 3).reshape(-1, 1, SIDE, SIDE)


def digits() -> list[np.ndarray]:
    """Training and test images (N, SIZE, SIZE) in [0, 1]."""
    images, labels = load_digits(return_X_y=True)
    images = np.float32(images / 16).reshape(-1, SIZE, SIZE)
    split = train_test_split(images, test_size=0.2, stratify=labels, random_state=0)
    return [np.asarray(part) for part in split]


def paint(rng: np.random.Generator, count: int, images: np.ndarray) -> Canvases:
    """Noisy canvases with a digit each, drawn from the images, over pieces of others."""
    ink = np.zeros((count, SIDE, SIDE), np.float32)
    truth = np.zeros(ink.shape, bool)
    drawn = rng.integers(len(images), size=(count, PIECES + 1))
    inside = rng.integers(SIZE - PIECE, size=(count, PIECES, 2), endpoint=True)
    places = rng.integers(SIDE - PIECE, size=(count, PIECES, 2), endpoint=True)
    for n, i in np.ndindex(count, PIECES):
        (y, x), (top, left) = inside[n, i], places[n, i]
        piece = images[drawn[n, i], y : y + PIECE, x : x + PIECE]
        spot = ink[n, top : top + PIECE, left : left + PIECE]
        np.maximum(spot, piece, out=spot)
    corners = rng.integers(SIDE - SIZE, size=(count, 2), endpoint=True)
    for n, (top, left) in enumerate(corners):
        spot = np.s_[n, top : top + SIZE, left : left + SIZE]
        digit = images[drawn[n, -1]]
        ink[spot] = np.maximum(ink[spot], digit)
        truth[spot] = digit > INK
    return Canvases(ink + NOISE * rng.standard_normal(ink.shape, np.float32), truth)


def iou(found: np.ndarray, truth: np.ndarray) -> float:
    """Pixels that are of both regions among those of either."""
    return float(np.sum(found & truth) / np.sum(found | truth))


@nnx.jit(static_argnames="name")
def step(model: Network, optimizer: nnx.Optimizer, name: str, canvases: Canvases) -> jax.Array:
    def loss(model: Network) -> jax.Array:
        truth = jnp.asarray(canvases.truth[:, None], jnp.float32)
        return LOSSES[name](model(jnp.asarray(canvases.images)), truth)

    value, gradient = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradient)
    return value


@nnx.jit
def find(model: Network, images: np.ndarray) -> jax.Array:
    """The probability that a pixel is of the digit, (N, SIDE, SIDE)."""
    return jax.nn.sigmoid(model(jnp.asarray(images))[:, 0])


def train(
    args: argparse.Namespace, name: str, images: np.ndarray, test: Canvases, progress: tqdm
) -> tuple[list[float], np.ndarray]:
    """The test IoU of every epoch, and the last probabilities."""
    model = Network(nnx.Rngs(args.seed))
    schedule = optax.cosine_decay_schedule(3e-3, args.epochs * STEPS)
    optimizer = nnx.Optimizer(model, optax.adamw(schedule, weight_decay=1e-3), wrt=nnx.Param)
    rng = np.random.default_rng(args.seed)  # Each loss sees the same canvases.
    scores, probabilities = [], np.empty(0)
    for _ in range(args.epochs):
        for _ in range(STEPS):
            step(model, optimizer, name, paint(rng, BATCH, images))
        probabilities = np.asarray(find(model, test.images))
        scores.append(iou(probabilities > 0.5, test.truth))
        progress.set_postfix_str(f"{name}: IoU {scores[-1]:.3f}")
        progress.update()
    return scores, probabilities


def told(name: str, scores: list[float], probabilities: np.ndarray, truth: np.ndarray) -> str:
    """The last IoU, and what it would be if not all that is above 0.5 counted as found."""
    best = max(iou(probabilities > t, truth) for t in np.arange(1, 20) / 20)
    return f"{scores[-1]:.3f} with {name} ({best:.3f} at its best threshold)"


def draw(args: argparse.Namespace, test: Canvases, results) -> None:
    """The first test canvases, the truth and what is found, and the IoU over the training."""
    figure = plt.figure(figsize=(12.5, 6.5), layout="constrained")
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=[2.1, 1]))
    panels = left.subplots(SHOWN, 2 + len(results))
    kinds = {"missed": "tab:orange", "false alarm": "tab:blue", "found": "black"}
    colors = ListedColormap(["white", *kinds.values()])
    regions = (probabilities > 0.5 for _, probabilities in results.values())
    for row, image, truth, *found in zip(panels, *test, *regions, strict=False):
        row[0].imshow(image, cmap="gray_r", vmin=0, vmax=1)
        for axes, region in zip(row[1:], [truth, *found], strict=True):
            axes.imshow(truth + 2 * region, cmap=colors, vmin=0, vmax=3)
            if region is not truth:
                axes.set_xlabel(f"IoU {iou(region, truth):.2f}")
    for axes, title in zip(panels[0], ["canvas", "truth", *results], strict=True):
        axes.set_title(title)
    for axes in panels.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    keys = [Patch(color=color, label=kind) for kind, color in kinds.items()]
    left.legend(handles=keys, loc="outside lower center", ncols=len(keys))

    axes = right.subplots()
    for name, (scores, _) in results.items():
        label = f"{name}: {scores[-1]:.3f}"
        axes.plot(np.arange(1, len(scores) + 1), scores, "o-", label=label)
    axes.set_title(f"IoU on {TEST_CANVASES} test canvases")
    axes.set_xlabel("epoch")
    axes.set_ylabel("test IoU of the digits' pixels")
    axes.set_ylim(0, 1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="lower right")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, help="24 by default, 4 with --quick")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/segment_digits.png"))
    parser.add_argument("--quick", action="store_true", help="a few epochs")
    args = parser.parse_args()
    args.epochs = args.epochs or (4 if args.quick else 24)

    start = time.perf_counter()
    images, test_images = digits()
    test = paint(np.random.default_rng(args.seed + 1000), TEST_CANVASES, test_images)
    with tqdm(total=args.epochs * len(LOSSES), unit="epoch", disable=None) as progress:
        results = {name: train(args, name, images, test, progress) for name in LOSSES}
    draw(args, test, results)
    seconds = time.perf_counter() - start
    scores = " and ".join(told(name, *result, test.truth) for name, result in results.items())
    share = np.mean(test.truth)
    print(
        f"test IoU {scores}; {share:.1%} of the pixels are foreground;"
        f" in {seconds:.0f} s; picture: {args.out}"
    )


if __name__ == "__main__":
    main()
