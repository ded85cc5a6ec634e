"""Trains a small network that puts images of the same digit close together.

python examples/learn_embedding.py --loss cosine

No output stands for a digit: the loss only compares embeddings, and the nearest neighbours among
the training images name a test image.
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
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from tqdm import tqdm

import jaxloss.nnx

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PIXELS = 64
FEATURES = 8  # Few, so that not every network keeps neighbours together.
BATCH = 256
STEPS = 50  # Batches in an epoch.
NEIGHBOURS = 5


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(PIXELS, 128, rngs=rngs)
        self.head = nnx.Linear(128, FEATURES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.hidden(images)))


def digits() -> list[np.ndarray]:
    """Training and test images (N, PIXELS) in [0, 1], training and test labels (N,)."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(
        np.float32(images / 16), np.int32(labels), test_size=0.4, stratify=labels, random_state=0
    )
    return [np.asarray(part) for part in split]


def triplets(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """Indices of anchors, of images of the same digits, and of images of others, (3, BATCH)."""
    members = [np.flatnonzero(labels == digit) for digit in range(10)]
    same = rng.integers(10, size=BATCH)
    other = (same + rng.integers(1, 10, size=BATCH)) % 10
    return np.array([[rng.choice(members[d]) for d in ds] for ds in (same, same, other)])


def loss(model: Network, name: str, images: jax.Array) -> jax.Array:
    """The loss of images (3, BATCH, PIXELS) of anchors, the same digits, and others."""
    anchors, same, other = model(images)
    if name == "triplet":
        return jaxloss.nnx.TripletMarginLoss(margin=1.0, swap=True)(anchors, same, other)
    signs = jnp.concatenate([jnp.ones(BATCH), -jnp.ones(BATCH)])
    pairs = jnp.concatenate([anchors, anchors]), jnp.concatenate([same, other])
    return jaxloss.nnx.CosineEmbeddingLoss(margin=0.3)(*pairs, signs)


@nnx.jit(static_argnames="name")
def step(model: Network, optimizer: nnx.Optimizer, name: str, images: jax.Array) -> jax.Array:
    value, gradient = nnx.value_and_grad(loss)(model, name, images)
    optimizer.update(model, gradient)
    return value


def embed(model: Network, name: str, images: np.ndarray) -> np.ndarray:
    """What the loss compares: for cosines, only the directions."""
    embedding = np.asarray(model(jnp.asarray(images)))
    length = np.linalg.norm(embedding, axis=1, keepdims=True)
    return embedding / length if name == "cosine" else embedding


def accuracy(train: np.ndarray, labels: np.ndarray, test: np.ndarray, truth: np.ndarray) -> float:
    """How often most of the nearest training images are of the same digit as a test image."""
    return float(KNeighborsClassifier(NEIGHBOURS).fit(train, labels).score(test, truth))


def train(args: argparse.Namespace, data: list[np.ndarray]):
    """The loss of every step; before and after, the test embedding and its accuracy."""
    images, test_images, labels, test_labels = data
    epochs = 4 if args.quick else args.epochs
    model = Network(nnx.Rngs(args.seed))
    schedule = optax.cosine_decay_schedule(3e-3, epochs * STEPS)
    optimizer = nnx.Optimizer(model, optax.adamw(schedule, weight_decay=1e-3), wrt=nnx.Param)
    rng = np.random.default_rng(args.seed)

    def measure() -> tuple[np.ndarray, float]:
        known, unknown = (embed(model, args.loss, x) for x in (images, test_images))
        return unknown, accuracy(known, labels, unknown, test_labels)

    losses, maps = [], [measure()]
    progress = tqdm(range(epochs), unit="epoch", disable=None)
    for _ in progress:
        for _ in range(STEPS):
            batch = jnp.asarray(images[triplets(rng, labels)])
            losses.append(step(model, optimizer, args.loss, batch))
        progress.set_postfix(loss=f"{losses[-1]:.3f}")
    return [float(value) for value in losses], [*maps, measure()]


def draw(args: argparse.Namespace, losses: list[float], maps, labels: np.ndarray) -> None:
    """The test images in the plane in which they differ most, before and after; the loss."""
    figure = plt.figure(figsize=(15, 5), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, title, (embedding, found) in zip(panels, ["Before", "After"], maps, strict=False):
        analysis = PCA(2).fit(embedding)
        x, y = analysis.transform(embedding).T
        for digit in range(10):
            chosen = labels == digit
            axes.scatter(x[chosen], y[chosen], s=14, color=f"C{digit}", label=str(digit))
        shown = np.sum(analysis.explained_variance_ratio_)
        axes.set_title(f"{title} training: {found:.1%} right by {NEIGHBOURS} neighbours")
        axes.set_xlabel(f"first principal component (both: {shown:.0%} of the variance)")
        axes.set_ylabel("second principal component")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside left center", title="digit")
    panels[2].plot(np.arange(1, len(losses) + 1) / STEPS, losses, linewidth=0.8)
    panels[2].set_title("Training")
    panels[2].set_xlabel("epoch")
    panels[2].set_ylabel(f"training loss: {args.loss}")
    panels[2].set_ylim(bottom=0)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--loss", choices=["triplet", "cosine"], default="triplet")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/learn_embedding.png"))
    parser.add_argument("--quick", action="store_true", help="a few epochs")
    args = parser.parse_args()

    start = time.perf_counter()
    data = digits()
    losses, maps = train(args, data)
    draw(args, losses, maps, data[3])
    seconds = time.perf_counter() - start
    print(
        f"test accuracy by {NEIGHBOURS} neighbours {maps[1][1]:.2%}, before training"
        f" {maps[0][1]:.2%}, in {seconds:.0f} s; picture: {args.out}"
    )


if __name__ == "__main__":
    main()
