"""Trains a small network to say how sure it is of its predictions, with the Gaussian NLL.

python examples/predict_uncertainty.py --seed 1

For comparison, the same network is trained with one variance for all patients.
"""

from __future__ import annotations

import argparse
import pathlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import nnx
from jax.scipy.special import ndtri
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import jaxloss.nnx

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MODELS = {"predicted": "a variance for each patient", "constant": "one variance for all"}
WEIGHT_DECAY = 1.0  # There are only a few hundred patients.
INTERVAL = 0.9


class Network(nnx.Module):
    """Mean and variance of the disease's progress in a year, of patients (N, features)."""

    def __init__(self, features: int, own_variance: bool, rngs: nnx.Rngs):
        self.own_variance = own_variance
        self.hidden = nnx.Linear(features, 32, rngs=rngs)
        self.dropout = nnx.Dropout(0.4, rngs=rngs)
        self.mean = nnx.Linear(32, 1, rngs=rngs)
        self.log_variance = nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, patients: jax.Array, training: bool = False) -> tuple[jax.Array, jax.Array]:
        x = nnx.silu(self.hidden(patients))
        x = self.dropout(x, deterministic=not training)
        # Without features only the bias is left.
        log_variance = self.log_variance(x if self.own_variance else jnp.zeros_like(x))
        return self.mean(x)[:, 0], jnp.exp(log_variance)[:, 0]


class Data(NamedTuple):
    patients: np.ndarray  # (N, features), standardised.
    progress: np.ndarray  # (N,), standardised.


def patients() -> tuple[Data, Data, float, float]:
    """Training and test part, and the mean and standard deviation of the training targets."""
    features, progress = map(np.asarray, load_diabetes(return_X_y=True, scaled=False))
    split = train_test_split(
        np.float32(features), np.float32(progress), test_size=0.4, random_state=0
    )
    train, test, train_progress, test_progress = (np.asarray(part) for part in split)
    mean, deviation = train_progress.mean(), train_progress.std()
    center, scale = train.mean(0), train.std(0)
    return (
        Data((train - center) / scale, (train_progress - mean) / deviation),
        Data((test - center) / scale, (test_progress - mean) / deviation),
        float(mean),
        float(deviation),
    )


LOSS = jaxloss.nnx.GaussianNLLLoss(full=True)


@nnx.jit
def step(model: Network, optimizer: nnx.Optimizer, data: Data) -> jax.Array:
    def loss(model: Network) -> jax.Array:
        mean, variance = model(jnp.asarray(data.patients), training=True)
        return LOSS(mean, data.progress, variance)

    value, gradient = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradient)
    return value


class Result(NamedTuple):
    losses: list[float]  # Of every step, in training.
    nll: float  # Of the test part, in nats per patient.
    mean: np.ndarray  # Of the test part.
    deviation: np.ndarray


def train(args: argparse.Namespace, own_variance: bool, data: Data, test: Data) -> Result:
    model = Network(data.patients.shape[1], own_variance, nnx.Rngs(args.seed))
    update = optax.adamw(optax.cosine_decay_schedule(1e-2, args.steps), weight_decay=WEIGHT_DECAY)
    optimizer = nnx.Optimizer(model, update, wrt=nnx.Param)
    progress = tqdm(range(args.steps), unit="step", disable=None)
    losses = [step(model, optimizer, data) for _ in progress]
    mean, variance = model(jnp.asarray(test.patients))
    nll = float(LOSS(mean, test.progress, variance))
    deviation = np.sqrt(np.asarray(variance))
    return Result([float(value) for value in losses], nll, np.asarray(mean), deviation)


def coverage(result: Result, progress: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """How often the central intervals that should hold the truth so often do hold it."""
    widths = np.asarray(ndtri(0.5 + expected / 2))
    distances = np.abs(progress - result.mean) / result.deviation
    return np.mean(distances[:, None] <= widths, 0)


def draw(args: argparse.Namespace, results: dict[str, Result], test: Data, mean, deviation) -> None:
    """Calibration, and the test predictions with their intervals."""
    figure = plt.figure(figsize=(15, 5), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1.6, 1])
    expected = np.linspace(0.02, 0.98, 49)
    left.plot([0, 100], [0, 100], color="gray", linewidth=0.8)
    for n, (name, result) in enumerate(results.items()):
        observed = coverage(result, test.progress, expected)
        left.plot(100 * expected, 100 * observed, color=f"C{n}", label=MODELS[name])
        test_nll = f"{MODELS[name]}, test {result.nll:.3f} nats"
        right.plot(result.losses, color=f"C{n}", linewidth=0.8, label=test_nll)
    left.set_title("Calibration")
    left.set_xlabel("predicted coverage of central intervals, %")
    left.set_ylabel("test patients inside, %")
    left.legend()

    result = results["predicted"]
    order = np.argsort(result.mean)
    width = float(ndtri(0.5 + INTERVAL / 2)) * result.deviation[order]
    center, truth = result.mean[order], test.progress[order]
    inside = np.abs(truth - center) <= width
    ranks = np.arange(len(order))

    def unit(standardised: np.ndarray) -> np.ndarray:
        return mean + deviation * standardised

    middle.fill_between(
        ranks,
        unit(center - width),
        unit(center + width),
        alpha=0.3,
        label=f"{INTERVAL:.0%} interval",
    )
    middle.plot(ranks, unit(center), label="prediction")
    for name, color, chosen in [("inside", "black", inside), ("outside", "tab:red", ~inside)]:
        middle.plot(ranks[chosen], unit(truth[chosen]), ".", color=color, label=f"truth, {name}")
    middle.set_title(f"Test patients: {np.mean(inside):.0%} inside")
    middle.set_xlabel("test patient, by prediction")
    middle.set_ylabel("progress of the disease in a year, score")
    middle.legend(loc="upper left")

    right.set_title("Training")
    right.set_xlabel("step")
    right.set_ylabel("training loss: Gaussian NLL, nats")
    right.legend()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, help="250 by default, 100 with --quick")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("out/predict_uncertainty.png")
    )
    parser.add_argument("--quick", action="store_true", help="few steps")
    args = parser.parse_args()
    args.steps = args.steps or (100 if args.quick else 250)

    start = time.perf_counter()
    data, test, mean, deviation = patients()
    results = {name: train(args, name == "predicted", data, test) for name in MODELS}
    draw(args, results, test, mean, deviation)
    covered = float(coverage(results["predicted"], test.progress, np.array([INTERVAL]))[0])
    seconds = time.perf_counter() - start
    print(
        f"test NLL {results['predicted'].nll:.3f} nats, with one variance"
        f" {results['constant'].nll:.3f} nats; {covered:.1%} of the truth in {INTERVAL:.0%}"
        f" intervals, in {seconds:.0f} s; picture: {args.out}"
    )


if __name__ == "__main__":
    main()
