"""Trains a small convolutional network to read lines of handwritten digits, with the CTC loss.

python examples/read_digit_strings.py --seed 1

Nothing says where in a line a digit stands: the loss sums over all places where it may be.
"""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import nnx
from jax.typing import ArrayLike
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import jaxloss

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

SYMBOLS = ["blank", *"0123456789"]  # Digit d is symbol d + 1.
SHORTEST, LONGEST = 3, 8  # Digits in a line.
SIZE = 8  # Pixels of a digit, either way.
GAPS = -1, 3  # Columns between digits, whose own outer columns are mostly empty.
MARGIN = 2  # Columns before and behind the digits.
HEIGHT, WIDTH = 12, LONGEST * (SIZE + GAPS[1]) + 2 * MARGIN
STRIDE = 2  # Columns per frame.
NOISE = 0.1
BATCH = 32
STEPS = 100  # Batches in an epoch; every one is new.
TEST_LINES = 500


class Lines(NamedTuple):
    images: np.ndarray  # (N, HEIGHT, WIDTH, 1), ink is 1.
    logit_paddings: np.ndarray  # (N, WIDTH / STRIDE), True behind the end of a line.
    labels: np.ndarray  # (N, LONGEST), symbols.
    label_paddings: np.ndarray  # (N, LONGEST), True behind the last digit.


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        # A convolution of all pixels before it would take more time than all others together.
        self.conv1 = nnx.Conv(1, 32, (4, 4), strides=(2, STRIDE), rngs=rngs)
        self.conv2 = nnx.Conv(32, 48, (3, 3), strides=(2, 1), rngs=rngs)
        self.norm = nnx.LayerNorm(HEIGHT // 4 * 48, rngs=rngs)
        self.conv3 = nnx.Conv(HEIGHT // 4 * 48, 96, 3, rngs=rngs)
        self.head = nnx.Linear(96, len(SYMBOLS), rngs=rngs)

    def __call__(self, images: np.ndarray) -> jax.Array:
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(jnp.asarray(images)))))
        frames = self.norm(jnp.swapaxes(x, 1, 2).reshape(len(x), x.shape[2], -1))
        return self.head(nnx.relu(self.conv3(frames)))


def digits() -> list[np.ndarray]:
    """Training and test images (N, 8, 8) in [0, 1], training and test labels (N,)."""
    images, labels = load_digits(return_X_y=True)
    images = np.float32(images / 16).reshape(-1, SIZE, SIZE)
    split = train_test_split(
        images, np.int32(labels), test_size=0.2, stratify=labels, random_state=0
    )
    return [np.asarray(part) for part in split]


def write(rng: np.random.Generator, count: int, images: np.ndarray, labels: np.ndarray) -> Lines:
    """Noisy lines of digits drawn from the images, at random heights and distances."""
    lengths = rng.integers(SHORTEST, LONGEST, (count, 1), endpoint=True)
    drawn = rng.integers(len(images), size=(count, LONGEST))
    tops = rng.integers(HEIGHT - SIZE, size=(count, LONGEST), endpoint=True)
    gaps = rng.integers(*GAPS, size=(count, LONGEST), endpoint=True)
    lefts = MARGIN + np.cumsum(SIZE + gaps, 1) - SIZE
    ends = np.take_along_axis(lefts, lengths - 1, 1) + SIZE + MARGIN
    absent = np.arange(LONGEST) >= lengths

    ink = NOISE * rng.standard_normal((count, HEIGHT, WIDTH), np.float32)
    for n, i in np.argwhere(~absent):
        top, left = tops[n, i], lefts[n, i]
        ink[n, top : top + SIZE, left : left + SIZE] += images[drawn[n, i]]
    ink *= np.arange(WIDTH) < ends[..., None]
    return Lines(ink[..., None], np.arange(0, WIDTH, STRIDE) >= ends, labels[drawn] + 1, absent)


def spell(labels: ArrayLike, paddings: ArrayLike) -> list[str]:
    """The digits of each line."""
    lines = zip(np.asarray(labels), np.asarray(paddings, bool), strict=True)
    return ["".join(SYMBOLS[symbol] for symbol in line[~missing]) for line, missing in lines]


def truths(lines: Lines) -> list[str]:
    return spell(lines.labels, lines.label_paddings)


class Method(NamedTuple):
    """What is different for other losses."""

    losses: Callable[[Any, Lines], jax.Array]  # Of a model, one per line.
    read: Callable[[Any, Lines], tuple[jax.Array, jax.Array]]  # Labels and paddings.


CTC = Method(
    lambda model, lines: jaxloss.ctc_loss(model(lines.images), *lines[1:]),
    lambda model, lines: jaxloss.ctc_greedy_decode(model(lines.images), lines.logit_paddings),
)


@nnx.jit(static_argnames="method")
def step(model: nnx.Module, optimizer: nnx.Optimizer, lines: Lines, *, method: Method) -> jax.Array:
    value, gradient = nnx.value_and_grad(lambda m: jnp.mean(method.losses(m, lines)))(model)
    optimizer.update(model, gradient)
    return value


@nnx.jit(static_argnames="method")
def character_error_rate(model: nnx.Module, lines: Lines, *, method: Method) -> jax.Array:
    """Edits per true digit."""
    edits = jaxloss.edit_distance(*method.read(model, lines), lines.labels, lines.label_paddings)
    return jnp.sum(edits) / jnp.sum(~lines.label_paddings)


def train(
    args: argparse.Namespace, model: nnx.Module, method: Method
) -> tuple[list[float], list[float], Lines]:
    """The loss of every step, the test error rate of every epoch, and the test lines."""
    images, test_images, labels, test_labels = digits()
    rng = np.random.default_rng(args.seed)
    test_lines = write(rng, TEST_LINES, test_images, test_labels)
    epochs = 2 if args.quick else args.epochs
    steps = epochs * STEPS
    schedule = optax.warmup_cosine_decay_schedule(0.0, 6e-3, steps // 5, steps)
    # Unclipped, the first steps end in a network that sees only blanks for a long time.
    clip = optax.clip_by_global_norm(1.0)
    update = optax.chain(clip, optax.adamw(schedule, weight_decay=0.3))
    optimizer = nnx.Optimizer(model, update, wrt=nnx.Param)

    losses, rates = [], []
    progress = tqdm(range(epochs), unit="epoch", disable=None)
    for _ in progress:
        for _ in range(STEPS):
            lines = write(rng, BATCH, images, labels)
            losses.append(step(model, optimizer, lines, method=method))
        rates.append(float(character_error_rate(model, test_lines, method=method)))
        progress.set_postfix(loss=f"{losses[-1]:.3f}", error=f"{rates[-1]:.1%}")
    return [float(value) for value in losses], rates, test_lines


class Sight(NamedTuple):
    """What a network sees in lines."""

    logits: jax.Array  # (N, frames, symbols).
    answer: tuple[jax.Array, jax.Array]  # Labels and paddings.
    alignment: jax.Array  # (N, frames, LONGEST), the probability of each true digit.
    first: jax.Array  # (N, frames), where the best path that reads the true digits begins each.
    last: jax.Array  # (N, frames), where it ends each.


@nnx.jit
def look(model: Network, lines: Lines) -> Sight:
    logits = model(lines.images)
    path = jaxloss.ctc_forced_alignment(logits, *lines[1:])
    spans = jaxloss.ctc_spans(path.symbols, path.log_probs)
    return Sight(
        logits,
        jaxloss.ctc_greedy_decode(logits, lines.logit_paddings),
        jaxloss.ctc_alignment(logits, *lines[1:]),
        spans.first,
        spans.last,
    )


def shown(
    model: nnx.Module, lines: Lines, method: Method, whose: str = ""
) -> tuple[list[str], Lines]:
    """The lines of the median and the largest loss, under headings that say so."""
    losses = np.asarray(nnx.jit(method.losses)(model, lines))
    order = np.argsort(losses)
    chosen = order[[len(order) // 2, -1]]
    named = zip(("Median", "Largest"), chosen, strict=True)
    headings = [f"{name} test loss{whose}, {losses[n]:.3g}" for name, n in named]
    return headings, Lines(*(part[chosen] for part in lines))


def heat_map(axes, probabilities: jax.Array, rows: Sequence[str], label: str) -> AxesImage:
    """Probabilities of each row in each frame."""
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylabel(label)
    extent = (0, WIDTH, len(rows) - 0.5, -0.5)
    return axes.imshow(probabilities.T, cmap="Blues", vmin=0, vmax=1, extent=extent)


def frame_spans(axes, sight: Sight, n: int, truth: str) -> None:
    """Frames around where CTC's best path reads each digit of a line."""
    spans = zip(sight.first[n], sight.last[n], strict=True)
    for row, (first, last) in zip(range(len(truth)), spans, strict=False):
        corner, width = (STRIDE * float(first), row - 0.5), STRIDE * float(last + 1 - first)
        axes.add_patch(Rectangle(corner, width, 1, fill=False, color="tab:orange"))


def draw_line(panels, heading: str, sight: Sight, lines: Lines, n: int) -> AxesImage:
    """A line, what the network sees in it, and where the true digits are."""
    truth, answer = truths(lines)[n], spell(*sight.answer)[n]
    color = "black" if answer == truth else "tab:red"
    panels[0].set_title(f"{heading}:\n{truth} is read as {answer}", color=color)
    extent = (0, WIDTH, HEIGHT, 0)
    panels[0].imshow(lines.images[n, ..., 0], cmap="gray_r", vmin=0, vmax=1, extent=extent)
    panels[0].set_ylabel("image row")

    heat_map(panels[1], jax.nn.softmax(sight.logits[n]), SYMBOLS, "network: symbol")
    alignment = sight.alignment[n, :, : len(truth)]
    heat = heat_map(panels[2], alignment, truth, "alignment: true digit")
    frame_spans(panels[2], sight, n, truth)
    for axes in panels:
        axes.set_aspect("auto")
        axes.set_xlim(0, STRIDE * np.sum(~lines.logit_paddings[n]))
    panels[2].set_xlabel(f"image column; a frame is {STRIDE} columns; framed: the best path")
    return heat


def draw(args: argparse.Namespace, losses, rates, model: Network, lines: Lines) -> None:
    """Two test lines with their alignments, and the learning curve."""
    figure = plt.figure(figsize=(15, 6.5), layout="constrained")
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=[2, 1]))
    panels = left.subplots(3, 2, sharex="col", height_ratios=[3, 8, 6])
    headings, lines = shown(model, lines, CTC)
    sight = look(model, lines)
    heats = [draw_line(panels[:, n], name, sight, lines, n) for n, name in enumerate(headings)]
    left.colorbar(heats[0], ax=panels, label="probability in the frame", aspect=40)

    axes = right.subplots()
    axes.set_title(f"Test character error rate {rates[-1]:.2%}")
    axes.plot(np.arange(1, len(losses) + 1) / STEPS, losses, color="tab:blue", linewidth=0.8)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("training loss: CTC, nats per line", color="tab:blue")
    twin = axes.twinx()
    twin.plot(np.arange(1, len(rates) + 1), 100 * np.array(rates), "o-", color="tab:orange")
    twin.set_ylabel("test character error rate, %", color="tab:orange")
    for side in axes, twin:
        side.set_yscale("log")
        side.yaxis.set_major_formatter("{x:g}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=110)


def arguments(about: str | None, picture: str) -> argparse.Namespace:
    """How a program that reads lines is to train, and where its picture goes."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out", picture))
    parser.add_argument("--quick", action="store_true", help="a few epochs")
    return parser.parse_args()


def main() -> None:
    args = arguments(__doc__, "read_digit_strings.png")
    start = time.perf_counter()
    model = Network(nnx.Rngs(args.seed))
    losses, rates, lines = train(args, model, CTC)
    draw(args, losses, rates, model, lines)
    seconds = time.perf_counter() - start
    print(f"test character error rate {rates[-1]:.2%} in {seconds:.0f} s; picture: {args.out}")


if __name__ == "__main__":
    main()
