"""Trains a small convolutional network on handwritten digits, under a loss of your choice.

python examples/train_digits.py --loss multi_margin --linen
"""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import jaxloss.linen
import jaxloss.nnx

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CLASSES = 10
BATCH = 64


def indices(outputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    return outputs, labels


def log_probabilities(outputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.nn.log_softmax(outputs), labels


def yes_or_no(outputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    return outputs, jax.nn.one_hot(labels, CLASSES)


def signs(outputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    return outputs, 2 * jax.nn.one_hot(labels, CLASSES) - 1


def probabilities(outputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.nn.softmax(outputs), jax.nn.one_hot(labels, CLASSES)


def distributions(outputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.nn.log_softmax(outputs), jax.nn.one_hot(labels, CLASSES)


def label_lists(outputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    first = jnp.arange(CLASSES) == 0
    return outputs, jnp.where(first[None], labels[:, None], -1)


# The class of torch.nn, its options, and what it is fed with.
LOSSES: dict[str, tuple[str, dict[str, Any], Callable[..., tuple[jax.Array, jax.Array]]]] = {
    "cross_entropy": ("CrossEntropyLoss", {"label_smoothing": 0.1}, indices),
    "nll": ("NLLLoss", {}, log_probabilities),
    "multi_margin": ("MultiMarginLoss", {}, indices),
    "multilabel_margin": ("MultiLabelMarginLoss", {}, label_lists),
    "bce_logits": ("BCEWithLogitsLoss", {}, yes_or_no),
    "bce": ("BCELoss", {}, probabilities),
    "multilabel_soft_margin": ("MultiLabelSoftMarginLoss", {}, yes_or_no),
    "soft_margin": ("SoftMarginLoss", {}, signs),
    "kl_div": ("KLDivLoss", {"reduction": "batchmean"}, distributions),
    "mse": ("MSELoss", {}, probabilities),
    "l1": ("L1Loss", {}, probabilities),
    "smooth_l1": ("SmoothL1Loss", {"beta": 0.5}, probabilities),
    "huber": ("HuberLoss", {"delta": 0.5}, probabilities),
}


class NNXNetwork(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.hidden = nnx.Linear(4 * 4 * 32, 64, rngs=rngs)
        self.head = nnx.Linear(64, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(images))))
        return self.head(nnx.relu(self.hidden(x.reshape(len(x), -1))))


class LinenNetwork(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(16, (3, 3))(images))
        x = nn.relu(nn.Conv(32, (3, 3), strides=2)(x))
        return nn.Dense(CLASSES)(nn.relu(nn.Dense(64)(x.reshape(len(x), -1))))


def network(linen: bool, seed: int, images: np.ndarray) -> tuple[Any, Callable[..., jax.Array]]:
    """Initial parameters, and the function from parameters and images to outputs."""
    if linen:
        model = LinenNetwork()
        parameters = model.init(jax.random.key(seed), jnp.asarray(images))
        return parameters, lambda p, x: jnp.asarray(model.apply(p, x))
    definition, parameters = nnx.split(NNXNetwork(nnx.Rngs(seed)))
    return parameters, lambda p, x: nnx.merge(definition, p)(x)


def loss_function(name: str, linen: bool, **options: Any) -> Callable[..., jax.Array]:
    """The loss of network outputs and labels; the door makes no difference."""
    cls, own_options, feed = LOSSES[name]
    module = getattr(jaxloss.linen if linen else jaxloss.nnx, cls)(**{**own_options, **options})
    return lambda outputs, labels: module(*feed(outputs, labels))


def digits(quick: bool) -> list[np.ndarray]:
    """Training and test images (N, 8, 8, 1) in [0, 1], training and test labels (N,)."""
    images, labels = load_digits(return_X_y=True)
    images = np.float32(images / 16).reshape(-1, 8, 8, 1)
    split = train_test_split(
        images, np.int32(labels), test_size=0.2, stratify=labels, random_state=0
    )
    return [np.asarray(part)[: 512 if quick else None] for part in split]


def train(args: argparse.Namespace) -> tuple[list[float], list[float], jax.Array, list[np.ndarray]]:
    """The loss of every step, the test accuracy of every epoch, and the last test outputs."""
    data = digits(args.quick)
    images, test_images, labels, test_labels = data
    epochs = 4 if args.quick else args.epochs
    steps = len(images) // BATCH
    parameters, apply = network(args.linen, args.seed, images[:1])
    loss = loss_function(args.loss, args.linen)
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, epochs * steps), weight_decay=1e-3)
    state = optimizer.init(parameters)

    @jax.jit
    def step(parameters, state, images, labels):
        value, gradient = jax.value_and_grad(lambda p: loss(apply(p, images), labels))(parameters)
        updates, state = optimizer.update(gradient, state, parameters)
        return optax.apply_updates(parameters, updates), state, value

    evaluate = jax.jit(apply)
    rng = np.random.default_rng(args.seed)
    losses, accuracies, outputs = [], [], evaluate(parameters, test_images)
    progress = tqdm(range(epochs), unit="epoch", disable=None)
    for _ in progress:
        for batch in rng.permutation(len(images))[: steps * BATCH].reshape(steps, BATCH):
            parameters, state, value = step(parameters, state, images[batch], labels[batch])
            losses.append(value)
        outputs = evaluate(parameters, test_images)
        accuracies.append(float(np.mean(np.argmax(outputs, -1) == test_labels)))
        progress.set_postfix(loss=f"{losses[-1]:.3f}", accuracy=f"{accuracies[-1]:.1%}")
    return [float(value) for value in losses], accuracies, outputs, [test_images, test_labels]


def per_example(args: argparse.Namespace, outputs: jax.Array, labels: np.ndarray) -> np.ndarray:
    """The same loss, unreduced; elementwise losses are summed over the classes."""
    unreduced = loss_function(args.loss, args.linen, reduction="none")(outputs, labels)
    return np.asarray(unreduced).reshape(len(labels), -1).sum(-1)


def draw(args: argparse.Namespace, losses, accuracies, outputs, images, labels) -> None:
    """The learning curve, and the test digits with the largest losses."""
    figure = plt.figure(figsize=(10, 4.2), layout="constrained")
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=[1.15, 1]))
    axes = left.subplots()
    epochs = np.arange(1, len(losses) + 1) * len(accuracies) / len(losses)
    axes.plot(epochs, losses, color="tab:blue", alpha=0.35, linewidth=0.8)
    window = max(len(losses) // len(accuracies), 1)
    smooth = np.convolve(losses, np.ones(window) / window, "valid")
    axes.plot(epochs[window - 1 :], smooth, color="tab:blue")
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel(f"training loss: {args.loss}", color="tab:blue")
    axes.set_ylim(bottom=0)
    twin = axes.twinx()
    twin.plot(np.arange(1, len(accuracies) + 1), 100 * np.array(accuracies), color="tab:orange")
    twin.set_ylabel("test accuracy, %", color="tab:orange")
    twin.set_ylim(min(80.0, 100 * min(accuracies)), 100)
    axes.set_title(f"Test accuracy {accuracies[-1]:.1%}")

    difficulty = per_example(args, outputs, labels)
    found = np.argmax(outputs, -1)
    right.suptitle("Largest test losses: digit → answer (loss), mistakes in red")
    for axes, worst in zip(right.subplots(3, 4).flat, np.argsort(-difficulty), strict=False):
        axes.imshow(images[worst, ..., 0], cmap="gray_r")
        color = "tab:red" if found[worst] != labels[worst] else "black"
        title = f"{labels[worst]} → {found[worst]}  ({difficulty[worst]:.2f})"
        axes.set_title(title, fontsize=10, color=color)
        axes.axis("off")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--loss", choices=LOSSES, default="cross_entropy")
    parser.add_argument("--linen", action="store_true", help="Flax Linen instead of NNX")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/train_digits.png"))
    parser.add_argument("--quick", action="store_true", help="a few epochs on a part of the data")
    args = parser.parse_args()

    start = time.perf_counter()
    losses, accuracies, outputs, (images, labels) = train(args)
    draw(args, losses, accuracies, outputs, images, labels)
    seconds = time.perf_counter() - start
    print(f"test accuracy {accuracies[-1]:.2%} in {seconds:.0f} s; picture: {args.out}")


if __name__ == "__main__":
    main()
