"""Distils a language model: a larger one teaches a small one which other words are likely.

python examples/distill_language_model.py --temperature 2

The small model learns once from the text alone and once from the text and the teacher, in the same
steps. The logits of a whole batch never exist at once, in either model.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import textwrap
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import train_language_model as language
from flax import nnx
from train_language_model import END, UNKNOWN, Network

import jaxloss

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FEATURES = 32  # Of the small model; the teacher has four times as many.
CONTEXT = 12  # Words before the places that are drawn,
QUANTILES = 0.3, 0.5, 0.7  # of this rank from where the teacher is surest of the next to where not,
GUESSES = 7  # with so many of the words that it expects.


class Lesson(NamedTuple):
    share: float  # Of the teacher in the loss; the rest is the text's.
    temperature: float
    beta: float


def loss(model: Network, teacher: Network, batch: jax.Array, lesson: Lesson) -> jax.Array:
    words, labels = batch[:, :-1], batch[:, 1:]
    hidden, table = model(words, training=True), model.table[...]
    chunk_size = language.LOGITS // labels.size
    text = jaxloss.linear_softmax_cross_entropy(
        hidden, table, labels, chunk_size=chunk_size, **language.TERMS
    )
    taught = jaxloss.linear_softmax_divergence(
        hidden,
        table,
        teacher(words),
        teacher.table[...],
        temperature=lesson.temperature,
        beta=lesson.beta,
        chunk_size=chunk_size,
    )
    # The gradient shrinks with the square of the temperature: so a share means the same at any.
    taught *= lesson.temperature**2
    return jaxloss.reduce((1 - lesson.share) * text + lesson.share * taught)


@functools.partial(nnx.jit, static_argnums=0)
def step(
    lesson: Lesson, teacher: Network, model: Network, optimizer: nnx.Optimizer, batch: np.ndarray
) -> jax.Array:
    value, gradient = nnx.value_and_grad(loss)(model, teacher, batch, lesson)
    optimizer.update(model, gradient)
    return value


def draw(args, text: language.Corpus, models: dict[str, Network], curves) -> None:
    """The learning curves, and what each model expects at some places of the test text."""
    figure = plt.figure(figsize=(16, 7), layout="constrained")
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=[2, 3]))
    colors = dict(zip(models, ("black", "tab:orange", "tab:blue"), strict=True))
    axes = left.subplots()
    for name, curve in curves.items():
        label = f"{name}: {curve[args.steps]:.1f}"
        axes.plot([*curve], [*curve.values()], "o-", color=colors[name], label=label)
    axes.set_yscale("log")
    axes.set_title("Test perplexity")
    axes.set_xlabel("step")
    axes.legend()

    words = text.test[:, : CONTEXT + 1]
    unreadable = [text.known.index(word) for word in (UNKNOWN, END)]
    readable = ~np.any(np.isin(words, unreadable), axis=1)
    words = words[readable, :-1]
    teacher = models["teacher"]
    entropy = jaxloss.linear_softmax_statistics(
        teacher(jnp.asarray(words))[:, -1], teacher.table[...], text.test[readable, CONTEXT]
    ).entropy
    chosen = np.argsort(entropy)[[int(quantile * len(words)) for quantile in QUANTILES]]
    expected = {
        name: jax.nn.softmax(model(jnp.asarray(words[chosen]))[:, -1] @ model.table[...].T)
        for name, model in models.items()
    }
    for n, axes in enumerate(np.ravel(right.subplots(1, len(QUANTILES)))):
        best = np.argsort(expected["teacher"][n])[::-1][:GUESSES]
        for row, (name, p) in enumerate(expected.items()):
            places = np.arange(GUESSES) + 0.27 * (row - 1)
            axes.barh(places, p[n, best], height=0.27, color=colors[name], label=name)
        axes.set_yticks(np.arange(GUESSES), [text.known[i] for i in best])
        axes.invert_yaxis()
        read = [text.known[i] for i in words[chosen[n]]]
        truth = text.known[text.test[readable, CONTEXT][chosen[n]]]
        lines = textwrap.fill(" ".join(read), 26)
        axes.set_title(f"{lines} …\n(the text: {truth})", fontsize=9)
        axes.set_xlabel("probability")
    right.suptitle("What stands next, where the teacher is more and less sure of it")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, help="of each model; 400 by default, 60 with --quick")
    parser.add_argument("--share", type=float, default=0.9, help="the teacher's part of the loss")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--beta", type=float, default=0.0, help="0: forward KL, 1: reverse KL")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("out/distill_language_model.png")
    )
    parser.add_argument("--quick", action="store_true", help="few steps, and a small vocabulary")
    args = parser.parse_args()
    args.steps, args.devices = args.steps or (60 if args.quick else 400), 1

    start = time.perf_counter()
    text = language.corpus(1024 if args.quick else 4096)
    sizes = {"teacher": language.FEATURES, "alone": FEATURES, "taught": FEATURES}
    models = {
        name: Network(len(text.known), nnx.Rngs(args.seed), features)
        for name, features in sizes.items()
    }
    lesson = Lesson(args.share, args.temperature, args.beta)
    teach = functools.partial(step, lesson, models["teacher"])
    curves = {}
    for name, model in models.items():
        weights = sum(array.size for array in jax.tree.leaves(nnx.state(model, nnx.Param)))
        print(f"{name}: {weights:,} parameters")
        update = teach if name == "taught" else language.step
        _, curves[name] = language.train(args, model, text, update)
    draw(args, text, models, curves)
    seconds = time.perf_counter() - start
    found = {name: curve[args.steps] for name, curve in curves.items()}
    print(
        f"test perplexity {found['taught']:.1f}, without the teacher {found['alone']:.1f},"
        f" of the teacher {found['teacher']:.1f}, in {seconds:.0f} s; picture: {args.out}"
    )


if __name__ == "__main__":
    main()
