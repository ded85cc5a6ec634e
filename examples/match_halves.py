"""Trains two networks, one for each half of an image, so that either half finds the other.

python examples/match_halves.py --loss sigmoid

No label says what is in an image: the upper and the lower half of a digit belong together, and all
other halves of a batch are the contrast. In CLIP and SigLIP the halves are pictures and captions.
"""

from __future__ import annotations

import argparse
import pathlib
import time

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
from matplotlib.patches import Rectangle

PIXELS = 32  # Of half an image.
FEATURES = 32
BATCH = 512
NOISE = 0.1  # Of the pixels in training, so that halves are not learnt by heart.
SHOWN = 40  # Images whose similarities are drawn.
LOSSES = {
    "info_nce": jaxloss.nnx.InfoNCELoss,
    "sigmoid": jaxloss.nnx.SigmoidContrastiveLoss,
}


class Tower(nnx.Module):
    """One half, (N, PIXELS), as a direction, (N, FEATURES)."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(PIXELS, 256, rngs=rngs)
        self.head = nnx.Linear(256, FEATURES, rngs=rngs)

    def __call__(self, half: jax.Array) -> jax.Array:
        x = self.head(nnx.relu(self.hidden(half)))
        return x / jnp.linalg.norm(x, axis=1, keepdims=True)


class Pair(nnx.Module):
    """A tower for each half, and the loss with the scale (and the bias) that it learns."""

    def __init__(self, loss: str, rngs: nnx.Rngs):
        self.upper, self.lower = Tower(rngs), Tower(rngs)
        self.loss = LOSSES[loss]()

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        upper, lower = jnp.split(images, 2, axis=1)
        return self.upper(upper), self.lower(lower)


def digits() -> list[np.ndarray]:
    """Training and test images (N, 2 PIXELS) in [0, 1], and the digits of the test images."""
    images, labels = load_digits(return_X_y=True)
    train, test, _, digits = train_test_split(
        np.float32(images / 16), labels, test_size=0.4, stratify=labels, random_state=0
    )
    return [np.asarray(part) for part in (train, test, digits)]


@nnx.jit
def step(model: Pair, optimizer: nnx.Optimizer, images: jax.Array) -> jax.Array:
    value, gradient = nnx.value_and_grad(lambda model: model.loss(*model(images)))(model)
    optimizer.update(model, gradient)
    return value


def similarities(model: Pair, images: np.ndarray) -> np.ndarray:
    """Of each upper half to each lower one, (N, N)."""
    upper, lower = (np.asarray(x) for x in model(jnp.asarray(images)))
    return upper @ lower.T


def found(similarity: np.ndarray, first: int) -> float:
    """How often a half's own other half is among the `first` most similar ones, both ways."""
    own = np.diag(similarity)
    ranks = [np.sum(similarity > own[:, None], 1), np.sum(similarity > own[None], 0)]
    return float(np.mean(np.array(ranks) < first))


def train(args: argparse.Namespace, images: np.ndarray, test: np.ndarray) -> list[np.ndarray]:
    """The similarities of the test halves before and after."""
    epochs = 60 if args.quick else args.epochs
    model = Pair(args.loss, nnx.Rngs(args.seed))
    steps = epochs * (len(images) // BATCH)
    schedule = optax.cosine_decay_schedule(3e-3, steps)
    optimizer = nnx.Optimizer(model, optax.adam(schedule), wrt=nnx.Param)
    rng = np.random.default_rng(args.seed)
    value, before = None, similarities(model, test)
    progress = tqdm(range(epochs), unit="epoch", disable=None)
    for _ in progress:
        for batch in np.array_split(rng.permutation(len(images)), len(images) // BATCH):
            noise = NOISE * rng.standard_normal((BATCH, 2 * PIXELS), np.float32)
            value = step(model, optimizer, jnp.asarray(images[batch[:BATCH]] + noise))
        progress.set_postfix(loss=f"{value:.3f}")
    return [before, similarities(model, test)]


def draw(args: argparse.Namespace, both: list[np.ndarray], data: list[np.ndarray]) -> None:
    """Similarities before and after, of images in the order of their digits; what is found."""
    _, test, labels = data
    figure = plt.figure(figsize=(15, 5), layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=[1, 1, 1.2])
    rows = np.sort(np.random.default_rng(0).choice(len(test), SHOWN, replace=False))
    rows = rows[np.argsort(labels[rows], kind="stable")]
    edges = np.flatnonzero(np.diff(labels[rows])) + 0.5
    for axes, title, similarity in zip(panels, ["Before", "After"], both, strict=False):
        axes.imshow(similarity[np.ix_(rows, rows)], vmin=-1, vmax=1, cmap="RdBu_r")
        axes.set_title(f"{title} training: {found(similarity, 1):.1%} found first")
        axes.set_xlabel("lower half, in the order of the digits")
        axes.set_ylabel("upper half")
        axes.set_xticks(edges, [])
        axes.set_yticks(edges, [])
    figure.colorbar(panels[0].images[0], ax=list(panels[:2]), label="cosine similarity", shrink=0.8)
    panels[2].axis("off")
    panels[2].set_title("Upper half, its own lower half, and the most similar ones")
    order = np.argsort(-both[1], 1)
    for n, row in enumerate(rows[:: SHOWN // 8][:8]):
        halves = [test[row, :PIXELS], test[row, PIXELS:], *test[order[row, :4], PIXELS:]]
        for k, half in enumerate(halves):
            place = (k * 1.15 + 0.5 * (k > 0) + 0.5 * (k > 1)), -n * 0.75
            extent = (place[0], place[0] + 1, place[1], place[1] + 0.5)
            panels[2].imshow(half.reshape(4, 8), cmap="gray_r", extent=extent, vmin=0, vmax=1)
            is_own = k > 1 and order[row, k - 2] == row
            frame = Rectangle(
                (extent[0], extent[2]), 1, 0.5, fill=False,
                color="C2" if is_own else "0.7", linewidth=3 if is_own else 1,
            )  # fmt: skip
            panels[2].add_patch(frame)
    panels[2].set_xlim(-0.1, 8)
    panels[2].set_ylim(-7 * 0.75 - 0.1, 0.6)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--loss", choices=list(LOSSES), default="info_nce")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/match_halves.png"))
    parser.add_argument("--quick", action="store_true", help="a few epochs")
    args = parser.parse_args()

    start = time.perf_counter()
    data = digits()
    both = train(args, *data[:2])
    draw(args, both, data)
    before, after = (found(x, 1) for x in both)
    seconds = time.perf_counter() - start
    print(
        f"the other half of {len(data[1])} found first {after:.1%}, before training {before:.1%},"
        f" among the first 5 {found(both[1], 5):.1%}, in {seconds:.0f} s; picture: {args.out}"
    )


if __name__ == "__main__":
    main()
