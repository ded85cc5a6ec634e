"""Trains a variational autoencoder on handwritten digits, with the sigmoid binary cross entropy.

python examples/autoencode_digits.py --seed 1

The loss bounds the surprise at an image: what its code costs, and what the code leaves open.
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

import jaxloss

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SIDE = 8  # Pixels of a digit, either way.
POINTS = 16  # Of a bitmap in each pixel, which says how many of them are ink.
LATENTS = 16
HIDDEN = 256
BATCH = 128
COLUMNS = 10


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.encoder = nnx.Linear(SIDE**2, HIDDEN, rngs=rngs)
        self.mean = nnx.Linear(HIDDEN, LATENTS, rngs=rngs)
        self.log_variance = nnx.Linear(HIDDEN, LATENTS, rngs=rngs)
        self.decoder = nnx.Linear(LATENTS, HIDDEN, rngs=rngs)
        self.head = nnx.Linear(HIDDEN, SIDE**2, rngs=rngs)

    def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log variance of the codes of images."""
        x = nnx.relu(self.encoder(images))
        return self.mean(x), self.log_variance(x)

    def decode(self, codes: jax.Array) -> jax.Array:
        """The logits of ink at a point of each pixel."""
        return self.head(nnx.relu(self.decoder(codes)))


def terms(model: Network, images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What codes leave open in each image, and what they cost: both in nats, (N,)."""
    mean, log_variance = model.encode(images)
    codes = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape, mean.dtype)
    losses = jaxloss.sigmoid_binary_cross_entropy(model.decode(codes), images)
    left_open = POINTS * jnp.sum(losses, -1)
    # From the code's Gaussian to the standard one that samples are drawn from.
    cost = 0.5 * jnp.sum(mean**2 + jnp.expm1(log_variance) - log_variance, -1)
    return left_open, cost


@nnx.jit
def step(model: Network, optimizer: nnx.Optimizer, images: jax.Array, key: jax.Array) -> jax.Array:
    def loss(model: Network) -> jax.Array:
        left_open, cost = terms(model, images, key)
        return jaxloss.reduce(left_open + cost)

    value, gradient = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradient)
    return value


@nnx.jit
def evaluate(model: Network, images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    left_open, cost = terms(model, images, key)
    return jaxloss.reduce(left_open), jaxloss.reduce(cost)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Training and test images (N, SIDE * SIDE) in [0, 1]."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(
        np.float32(images / 16), test_size=0.2, stratify=labels, random_state=0
    )
    train, test = (np.asarray(part) for part in split)
    return train, test


def entropy(images: np.ndarray) -> float:
    """What even perfect pixels leave open, namely which of their points are ink; in nats."""
    return POINTS * float(jnp.mean(jnp.sum(jaxloss.binary_cross_entropy(images, images), -1)))


def train(args: argparse.Namespace, model: Network, images: np.ndarray, test: np.ndarray):
    """The loss of every step, and the two terms on the test part before and after."""
    steps = len(images) // BATCH
    schedule = optax.cosine_decay_schedule(3e-3, args.epochs * steps)
    optimizer = nnx.Optimizer(model, optax.adam(schedule), wrt=nnx.Param)
    rng, keys = np.random.default_rng(args.seed), nnx.Rngs(args.seed)

    def measure() -> list[float]:
        return [float(term) for term in evaluate(model, jnp.asarray(test), keys())]

    losses, before = [], measure()
    progress = tqdm(range(args.epochs), unit="epoch", disable=None)
    for _ in progress:
        for batch in rng.permutation(len(images))[: steps * BATCH].reshape(steps, BATCH):
            losses.append(step(model, optimizer, jnp.asarray(images[batch]), keys()))
        progress.set_postfix(loss=f"{losses[-1]:.2f}")
    return [float(value) for value in losses], before, measure()


def draw(args: argparse.Namespace, model: Network, losses: list[float], test: np.ndarray) -> None:
    """Test images with their reconstructions, samples, and the learning curve."""
    originals = jnp.asarray(test[: 2 * COLUMNS])
    codes = jax.random.normal(jax.random.key(args.seed), (2 * COLUMNS, LATENTS), jnp.float32)
    rebuilt = jax.nn.sigmoid(model.decode(model.encode(originals)[0]))
    sampled = jax.nn.sigmoid(model.decode(codes))

    figure = plt.figure(figsize=(14, 6), layout="constrained")
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=[1.5, 1]))
    parts = left.subfigures(3, 1)
    titles = "Test digits", "Rebuilt from their codes", "Samples: decoded standard normal codes"
    for part, title, images in zip(parts, titles, (originals, rebuilt, sampled), strict=True):
        part.suptitle(title)
        for axes, image in zip(part.subplots(2, COLUMNS).flat, images, strict=True):
            axes.imshow(image.reshape(SIDE, SIDE), cmap="gray_r", vmin=0, vmax=1)
            axes.axis("off")
    axes = right.subplots()
    epochs = np.arange(1, len(losses) + 1) * args.epochs / len(losses)
    axes.plot(epochs, losses, linewidth=0.8)
    floor = entropy(test)
    axes.axhline(floor, color="black", linestyle="--")
    axes.text(epochs[-1], floor, "perfect pixels, codes for free", ha="right", va="bottom")
    axes.set_ylim(0, losses[0])
    axes.set_title("Training")
    axes.set_xlabel("epoch")
    axes.set_ylabel("training loss: −ELBO, nats per image")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, help="100 by default, 15 with --quick")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("out/autoencode_digits.png")
    )
    parser.add_argument("--quick", action="store_true", help="a few epochs")
    args = parser.parse_args()
    args.epochs = args.epochs or (15 if args.quick else 100)

    start = time.perf_counter()
    images, test = digits()
    model = Network(nnx.Rngs(args.seed))
    losses, before, after = train(args, model, images, test)
    draw(args, model, losses, test)
    seconds = time.perf_counter() - start
    print(
        f"test: reconstruction {after[0]:.2f} + code {after[1]:.2f} nats per image, before training"
        f" {before[0]:.2f} + {before[1]:.2f}, in {seconds:.0f} s; picture: {args.out}"
    )


if __name__ == "__main__":
    main()
