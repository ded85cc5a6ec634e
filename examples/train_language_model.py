"""Trains a small language model on the documentation that comes with Python.

python examples/train_language_model.py --devices 2

The output layer is the embedding table, and the loss never holds the logits of a whole batch.
"""

from __future__ import annotations

import argparse
import ast
import collections
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tqdm import tqdm

import jaxloss

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

UNKNOWN, END = "<unk>", "¶"  # END stands before and behind every paragraph.
PIECE = 20  # Paragraphs that stay together; every tenth piece is test text.
FEATURES = 128
LENGTH = 64  # Words in a window.
BATCH = 16
LOGITS = 2**20  # That exist at a time: few enough to stay in the cache of a CPU.
MEMORY_BATCH = 128  # Windows for which the memory is compared.
TERMS: dict[str, Any] = {"label_smoothing": 0.05, "z_loss": 1e-4}
DRAWN = 12, 24  # Words of the paragraphs that are drawn,
QUANTILES = 0.1, 0.4, 0.6, 0.9  # of this rank from the least surprising to the most,
COLUMNS = 80  # in lines of so many characters,
GUESSES = 2  # with so many of the model's guesses.


Paragraph = tuple[str, ...]  # Words.


class Network(nnx.Module):
    def __init__(self, vocabulary: int, rngs: nnx.Rngs, features: int = FEATURES):
        table = jax.random.normal(rngs.params(), (vocabulary, features), jnp.float32)
        # So small that in the beginning all words are about as likely.
        self.table = nnx.Param(0.03 * table)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.recurrence = nnx.RNN(nnx.GRUCell(features, features, rngs=rngs))
        self.norm = nnx.LayerNorm(features, rngs=rngs)

    def embed(self, words: jax.Array) -> jax.Array:
        table = self.table[...]
        return table[words] * table.shape[1] ** 0.5

    def __call__(self, words: jax.Array, training: bool = False) -> jax.Array:
        """What is known before each next word, (N, LENGTH, features)."""
        x = self.dropout(self.embed(words), deterministic=not training)
        return self.dropout(self.norm(self.recurrence(x)), deterministic=not training)


def texts() -> Iterable[str]:
    """The topics of `help()`, and the docstrings of the standard library."""
    yield from topics.values()
    for path in sorted(pathlib.Path(os.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield ast.get_docstring(node) or ""


def tokenize(text: str) -> Paragraph:
    return tuple(re.findall(r"[a-z]+(?:'[a-z]+)?|\d+|[.,:;()\"!?]", text.lower()))


def paragraphs() -> tuple[list[Paragraph], list[Paragraph]]:
    """Prose for training and test."""
    found = (part.strip() for text in texts() for part in re.split(r"\n\s*\n", text))
    # Topics quote each other: a paragraph that is there twice could be in both parts.
    prose = dict.fromkeys(tokenize(part) for part in found if part.endswith((".", ":", "?", "!")))
    train, test = [], []
    for n, words in enumerate(prose):
        (test if n // PIECE % 10 == 9 else train).append(words)
    return train, test


def vocabulary(train: Iterable[Paragraph], size: int) -> list[str]:
    """The most frequent words; all others are unknown."""
    counts = collections.Counter(word for words in train for word in words)
    return [UNKNOWN, END, *(word for word, _ in counts.most_common(size - 2))]


def encode(texts: Iterable[Paragraph], known: list[str]) -> np.ndarray:
    """The paragraphs one after the other, as numbers of words."""
    numbers = {word: number for number, word in enumerate(known)}
    words = [END, *(word for text in texts for word in (*text, END))]
    return np.array([numbers.get(word, numbers[UNKNOWN]) for word in words], np.int32)


def windows(stream: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Windows with the word behind each, (N, LENGTH + 1)."""
    return stream[starts[:, None] + np.arange(LENGTH + 1)]


class Corpus(NamedTuple):
    known: list[str]
    stream: np.ndarray  # All training text.
    test: np.ndarray  # Windows.
    test_part: list[Paragraph]


def corpus(size: int) -> Corpus:
    """The text, of which the `size` most frequent words are known."""
    train_part, test_part = paragraphs()
    known = vocabulary(train_part, size)
    stream, test_stream = encode(train_part, known), encode(test_part, known)
    test = windows(test_stream, np.arange(0, len(test_stream) - LENGTH, LENGTH))
    return Corpus(known, stream, test, test_part)


def unigram_perplexity(train: np.ndarray, labels: np.ndarray, size: int) -> float:
    """The perplexity when every word is as likely as it is frequent, with add-one smoothing."""
    counts = np.bincount(train, minlength=size) + 1.0
    return float(np.exp(-np.mean(np.log(counts / np.sum(counts))[labels])))


def loss(model: Network, batch: jax.Array, fused: bool = True) -> jax.Array:
    hidden = model(batch[:, :-1], training=True)
    table, labels = model.table[...], batch[:, 1:]
    if fused:
        losses = jaxloss.linear_softmax_cross_entropy(
            hidden, table, labels, chunk_size=LOGITS // labels.size, **TERMS
        )
    else:
        logits = hidden @ table.T
        losses = jaxloss.softmax_cross_entropy_with_integer_labels(logits, labels, **TERMS)
    return jaxloss.reduce(losses)


def memory(model: Network, fused: bool) -> float:
    """What the compiled gradient of the loss needs beside its arguments and results, in MB."""
    batch = jax.ShapeDtypeStruct((MEMORY_BATCH, LENGTH + 1), jnp.int32)
    gradient = nnx.jit(nnx.value_and_grad(loss), static_argnums=2)
    analysis = gradient.lower(model, batch, fused).compile().memory_analysis()
    return analysis.temp_size_in_bytes / 1e6 if analysis else float("nan")


@nnx.jit
def step(model: Network, optimizer: nnx.Optimizer, batch: np.ndarray) -> jax.Array:
    value, gradient = nnx.value_and_grad(loss)(model, batch)
    optimizer.update(model, gradient)
    return value


Step = Callable[[Network, nnx.Optimizer, np.ndarray], jax.Array]


@nnx.jit
def surprises(model: Network, batch: np.ndarray) -> jax.Array:
    """-log p of every next word, in nats: no smoothing, no z-loss."""
    hidden = model(jnp.asarray(batch[:, :-1]))
    return jaxloss.linear_softmax_cross_entropy(hidden, model.table[...], batch[:, 1:])


def shard_vocabulary(devices: int, model: Network, optimizer: nnx.Optimizer) -> None:
    """Spreads the words of the table, and what the optimizer knows of them, over the devices."""
    mesh = jax.make_mesh((devices,), ("model",), axis_types=(AxisType.Auto,))

    def place(path, array: jax.Array) -> jax.Array:
        of_table = "table" in jax.tree_util.keystr(path)
        spec = PartitionSpec("model") if of_table else PartitionSpec()
        return jax.device_put(array, NamedSharding(mesh, spec))

    nodes = model, optimizer
    nnx.update(nodes, jax.tree_util.tree_map_with_path(place, nnx.state(nodes)))


def train(args: argparse.Namespace, model: Network, corpus: Corpus, step: Step = step):
    """The loss of every step, and the test perplexity after some of them."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 8e-3, args.steps // 10, args.steps)
    clip = optax.clip_by_global_norm(1.0)
    update = optax.chain(clip, optax.adamw(schedule, weight_decay=0.3))
    optimizer = nnx.Optimizer(model, update, wrt=nnx.Param)
    shard_vocabulary(args.devices, model, optimizer)

    rng = np.random.default_rng(args.seed)
    every = max(1, args.steps // 10)
    losses, perplexities = [], {}
    progress = tqdm(range(1, args.steps + 1), unit="step", disable=None)
    for n in progress:
        starts = rng.integers(len(corpus.stream) - LENGTH, size=BATCH)
        batch = windows(corpus.stream, starts)
        losses.append(step(model, optimizer, batch))
        if n % every == 0 or n == args.steps:
            perplexities[n] = float(np.exp(np.mean(surprises(model, corpus.test))))
            progress.set_postfix(loss=f"{losses[-1]:.3f}", perplexity=f"{perplexities[n]:.1f}")
    return [float(value) for value in losses], perplexities


def draw_words(axes, row: int, words: Sequence[str], nats: np.ndarray, guesses, color) -> int:
    """Words on the colour of their surprise, each above what was expected; the next free row."""
    column, height = 0, len(guesses[0]) + 2
    for word, surprise, expected in zip(words, nats, guesses, strict=True):
        width = max(map(len, [word, *expected])) + 1
        if column + width > COLUMNS:
            row, column = row + height, 0
        axes.add_patch(Rectangle((column, row), width - 0.3, 1, color=color.to_rgba(surprise)))
        inks = ["white" if color.norm(surprise) > 0.6 else "black"]
        inks += ["tab:green" if guess == word else "gray" for guess in expected]
        for n, (text, ink) in enumerate(zip([word, *expected], inks, strict=True)):
            place = column + (width - 0.3) / 2, row + n + 0.5
            axes.text(*place, text, color=ink, family="monospace", ha="center", va="center")
        column += width
    return row + height


def draw(args, model: Network, corpus: Corpus, losses, perplexities, unigram) -> None:
    """The learning curve, and how surprised the model is by some paragraphs of the test text."""
    figure = plt.figure(figsize=(16, 8), layout="constrained")
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=[2, 3]))
    top, bottom = left.subplots(2, 1, sharex=True)
    top.plot(np.arange(1, len(losses) + 1), losses, color="tab:blue", linewidth=0.8)
    top.set_title(f"Test perplexity {perplexities[len(losses)]:.1f}")
    top.set_ylabel("training loss with smoothing\nand z-loss, nats per word")
    bottom.plot([*perplexities], [*perplexities.values()], "o-", color="tab:orange")
    bottom.axhline(unigram, color="black", linestyle="--")
    bottom.text(0, unigram, f"unigram: {unigram:.1f}", va="bottom")
    bottom.set_ylim(0, 1.1 * max(unigram, *perplexities.values()))
    bottom.set_ylabel("test perplexity")
    bottom.set_xlabel("step")

    known, (shortest, longest) = corpus.known, DRAWN
    fit = [p for p in corpus.test_part if shortest <= len(p) <= longest and set(p) <= set(known)]
    # What stands behind a paragraph does not matter: the network does not look ahead.
    rows = np.stack([np.resize(encode([p], known), LENGTH + 1) for p in fit])
    inside = np.arange(LENGTH) < np.array([len(p) for p in fit])[:, None]
    nats = np.asarray(surprises(model, rows))
    means = np.mean(nats, 1, where=inside)
    chosen = np.argsort(means)[[int(quantile * len(fit)) for quantile in QUANTILES]]
    logits = model(jnp.asarray(rows[chosen, :-1])) @ model.table[...].T
    guesses = np.asarray(jax.lax.top_k(logits[..., : len(known)], GUESSES)[1])

    color = ScalarMappable(Normalize(0, 10), "Reds")
    axes, row = right.subplots(), 0
    axes.set_title(f"What surprises the model, and below its best guesses ({END}: paragraph ends)")
    for quantile, n, numbers in zip(QUANTILES, chosen, guesses, strict=True):
        name = f"{quantile:.0%} of the paragraphs surprise less"
        axes.text(0, row + 0.5, f"{name}: perplexity {np.exp(means[n]):.0f}", va="center")
        expected = [[known[i] for i in best] for best in numbers[inside[n]]]
        row = draw_words(axes, row + 1, fit[n], nats[n, inside[n]], expected, color)
    axes.set_xlim(0, COLUMNS)
    axes.set_ylim(row, 0)
    axes.axis("off")
    right.colorbar(color, ax=axes, label="surprise, nats", aspect=40)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, help="800 by default, 60 with --quick")
    parser.add_argument("--devices", type=int, default=1, help="to shard the vocabulary over")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("out/train_language_model.png")
    )
    parser.add_argument("--quick", action="store_true", help="few steps, and a small vocabulary")
    args = parser.parse_args()
    # Only has an effect before the first array.
    jax.config.update("jax_num_cpu_devices", args.devices)
    args.steps = args.steps or (60 if args.quick else 800)

    start = time.perf_counter()
    size = (1024 if args.quick else 4096) // args.devices * args.devices
    text = corpus(size)
    labels = text.test[:, 1:]
    unigram = unigram_perplexity(text.stream, labels, size)
    unknown = np.mean(labels == text.known.index(UNKNOWN))
    print(
        f"{len(text.stream):,} training words, {labels.size:,} test words; of these"
        f" {unknown:.1%} are none of the {size} in the vocabulary and count as one word"
    )
    model = Network(size, nnx.Rngs(args.seed))
    print(
        f"memory for the gradient of {MEMORY_BATCH} x {LENGTH} words:"
        f" {memory(model, fused=True):.0f} MB, with all logits {memory(model, fused=False):.0f} MB"
    )
    losses, perplexities = train(args, model, text)
    draw(args, model, text, losses, perplexities, unigram)
    seconds = time.perf_counter() - start
    print(
        f"test perplexity {perplexities[args.steps]:.1f}, unigram {unigram:.1f},"
        f" in {seconds:.0f} s; picture: {args.out}"
    )


if __name__ == "__main__":
    main()
