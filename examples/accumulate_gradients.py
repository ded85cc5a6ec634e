"""Shows that gradients of parts of a batch add up to that of the batch, if divided by its tokens.

python examples/accumulate_gradients.py --devices 8

A token is a handwritten digit in a line of digits. Lines have very different lengths, and are
grouped by length, as loaders do to save padding. A mean of the means of such parts counts every
token of a part with short lines many times over.
"""

from __future__ import annotations

import argparse
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, PartitionSpec
from sklearn.datasets import load_digits
from tqdm import tqdm

import jaxloss

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PIXELS, CLASSES = 64, 10
LINES = 64  # In a batch.
LONGEST = 64  # Tokens in a line.
PARTS = 8  # Of a batch, one after the other.
RIGHT = "accumulated", "sharded"


class Batch(NamedTuple):
    images: jax.Array  # (LINES, LONGEST, PIXELS)
    labels: jax.Array  # (LINES, LONGEST)
    present: jax.Array  # (LINES, LONGEST), False behind the end of a line.


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(PIXELS, 64, rngs=rngs)
        self.head = nnx.Linear(64, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.hidden(images)))


def names(devices: int) -> dict[str, str]:
    return {
        "accumulated_means": f"{PARTS} parts, mean of means",
        "sharded_means": f"{devices} devices, mean of means",
        "accumulated": f"{PARTS} parts, normalizer=tokens",
        "sharded": f'{devices} devices, axis_name="data"',
    }


def draw_batch(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> Batch:
    """Lines of random digits; the logarithms of their lengths are uniform."""
    lengths = np.sort(np.exp(rng.uniform(0, np.log(LONGEST + 1), LINES)).astype(int))
    chosen = rng.integers(len(images), size=(LINES, LONGEST))
    present = np.arange(LONGEST) < lengths[:, None]
    return Batch(jnp.asarray(images[chosen]), jnp.asarray(labels[chosen]), jnp.asarray(present))


def gradients(definition: nnx.GraphDef, mesh: Mesh) -> dict[str, Any]:
    """Functions from parameters and a batch to the loss and its gradient, in several ways."""

    def mean(parameters: nnx.State, batch: Batch, **options: Any) -> jax.Array:
        logits = nnx.merge(definition, parameters)(batch.images)
        losses = jaxloss.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return jaxloss.reduce(losses, where=batch.present, **options)

    def accumulate(loss, parameters: nnx.State, batch: Batch):
        """The sums over parts, of which only one is in memory at a time."""

        def add(sums, part: Batch):
            return jax.tree.map(jnp.add, sums, jax.value_and_grad(loss)(parameters, part)), None

        parts = jax.tree.map(lambda x: x.reshape(PARTS, -1, *x.shape[1:]), batch)
        zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, parameters)
        return jax.lax.scan(add, zeros, parts)[0]

    def accumulated(parameters: nnx.State, batch: Batch):
        tokens = jnp.sum(batch.present)
        return accumulate(lambda p, part: mean(p, part, normalizer=tokens), parameters, batch)

    def accumulated_means(parameters: nnx.State, batch: Batch):
        return accumulate(lambda p, part: mean(p, part) / PARTS, parameters, batch)

    def on_devices(loss):
        specs = PartitionSpec(), PartitionSpec("data")
        spread = jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
        return jax.value_and_grad(spread)

    ways = {
        "whole": jax.value_and_grad(mean),
        "accumulated": accumulated,
        "accumulated_means": accumulated_means,
        "sharded": on_devices(lambda p, shard: mean(p, shard, axis_name="data")),
        "sharded_means": on_devices(lambda p, shard: jax.lax.pmean(mean(p, shard), "data")),
    }
    return {name: jax.jit(way) for name, way in ways.items()}


def train(args: argparse.Namespace):
    """For every way and step its loss, and how far its gradient is from the whole batch's."""
    digits = load_digits(return_X_y=True)
    images, labels = np.asarray(digits[0] / 16, np.float32), np.asarray(digits[1], np.int32)
    rng = np.random.default_rng(args.seed)
    definition, parameters = nnx.split(Network(nnx.Rngs(args.seed)))
    mesh = jax.make_mesh((args.devices,), ("data",), axis_types=(AxisType.Auto,))
    ways = gradients(definition, mesh)
    optimizer = optax.adam(3e-3)
    state = optimizer.init(parameters)
    update = jax.jit(optimizer.update)

    losses = {name: [] for name in ways}
    errors = {name: [] for name in ways}
    present = []
    for _ in tqdm(range(args.steps), unit="step", disable=None):
        batch = draw_batch(rng, images, labels)
        present.append(np.asarray(batch.present))
        # All ways see the same parameters, so that only the ways make a difference.
        results = {name: way(parameters, batch) for name, way in ways.items()}
        truth = np.asarray(ravel_pytree(results["whole"][1])[0])
        for name, (value, gradient) in results.items():
            distance = np.linalg.norm(ravel_pytree(gradient)[0] - truth)
            losses[name].append(float(value))
            errors[name].append(float(distance / np.linalg.norm(truth)))
        updates, state = update(results["accumulated"][1], state, parameters)
        parameters = optax.apply_updates(parameters, updates)
    return losses, errors, np.array(present)


def draw(args: argparse.Namespace, losses, errors, present: np.ndarray) -> None:
    """Tokens of the first batch's parts, the losses, and the errors of the gradients."""
    figure = plt.figure(figsize=(15, 5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    tokens = present[0].reshape(PARTS, -1).sum(1)
    bars = left.bar(np.arange(1, PARTS + 1), tokens, color="tab:blue")
    shares = np.sum(tokens) / PARTS / tokens
    left.bar_label(bars, [f"×{share:.2g}" for share in shares])
    left.set_title("Weight of a token in a mean of means")
    left.set_xlabel("part of the first batch")
    left.set_ylabel("tokens")

    steps = np.arange(1, args.steps + 1)
    for name, label in names(args.devices).items():
        middle.plot(steps, np.abs(np.subtract(losses[name], losses["whole"])), ".", label=label)
        right.plot(steps, errors[name], ".", label=label)
    middle.set_title("Loss: off from the whole batch's")
    middle.set_ylabel("difference, nats per token")
    right.set_title("Gradient: off from the whole batch's")
    right.set_ylabel("length of the difference / length of the gradient")
    for axes in middle, right:
        axes.set_xlabel("step")
        axes.set_yscale("log")
        axes.legend(loc="center right")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, help="150 by default, 20 with --quick")
    parser.add_argument("--devices", type=int, default=4, help=f"a divisor of {LINES}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("out/accumulate_gradients.png")
    )
    parser.add_argument("--quick", action="store_true", help="few steps")
    args = parser.parse_args()
    # Only has an effect before the first array.
    jax.config.update("jax_num_cpu_devices", args.devices)
    args.steps = args.steps or (20 if args.quick else 150)

    start = time.perf_counter()
    losses, errors, present = train(args)
    draw(args, losses, errors, present)
    seconds = time.perf_counter() - start
    for name, label in names(args.devices).items():
        difference = np.max(np.abs(np.subtract(losses[name], losses["whole"])))
        print(f"{label}: loss off by up to {difference:.1e}, gradient by {max(errors[name]):.1e}")
    worst = max(max(errors[name]) for name in RIGHT)
    typical = np.median(errors["accumulated_means"])
    print(
        f"gradient off by {typical:.0%} with means of means, by at most {worst:.1e} with the"
        f" right means, in {seconds:.0f} s; picture: {args.out}"
    )


if __name__ == "__main__":
    main()
