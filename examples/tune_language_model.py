"""Tunes a language model by policy gradient towards words that begin with a letter.

python examples/tune_language_model.py --letter s

The model writes several texts for each prompt, and those with more such words than the others, each
counted once, become more likely. The log-probabilities of the written words, the entropy of each
choice, and how far the model has moved from its start, take no logits of all words at once.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import string
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import train_language_model as language
from flax import nnx
from tqdm import tqdm
from train_language_model import END, Network

import jaxloss

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import PercentFormatter

PROMPT = 4  # Words: a paragraph's beginning.
PROMPTS = 8  # In a step,
GROUP = 8  # of which the model writes so many texts,
WORDS = 20  # of so many words.
LEARNING_RATE = 2e-3
TEXTS = 256  # Behind beginnings of test paragraphs: what is reported.
DRAWN = 4


class Weights(NamedTuple):
    kl: float
    entropy: float


class Course(NamedTuple):
    """Of every step."""

    reward: jax.Array
    kl: jax.Array
    entropy: jax.Array


def prompts(stream: np.ndarray, known: list[str]) -> jax.Array:
    """The beginnings of the paragraphs, (N, PROMPT)."""
    starts = np.flatnonzero(stream[: 1 - PROMPT] == known.index(END))
    return jnp.asarray(stream[starts[:, None] + np.arange(PROMPT)])


@nnx.jit
def write(model: Network, beginnings: jax.Array, key: jax.Array) -> jax.Array:
    """Prompts (N, PROMPT) and what the model writes behind them, (N, PROMPT + WORDS)."""
    state, _ = model.recurrence(model.embed(beginnings), return_carry=True)

    def grow(state: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        word = jax.random.categorical(key, model.norm(state) @ model.table[...].T)
        return model.recurrence.cell(state, model.embed(word))[0], word

    _, words = jax.lax.scan(grow, state, jax.random.split(key, WORDS))
    return jnp.concatenate([beginnings, words.T], 1)


def rewards(texts: jax.Array, wanted: jax.Array) -> jax.Array:
    """The share of wanted words in what was written, (N,); a repetition earns nothing."""
    words = jnp.sort(texts[:, PROMPT:], axis=1)
    is_new = jnp.diff(words, axis=1, prepend=-1) > 0
    return jnp.sum(wanted[words], axis=1, where=is_new) / WORDS


def advantages(earned: jax.Array) -> jax.Array:
    """By how many standard deviations a text is better than others of its prompt, (N,)."""
    groups = earned.reshape(-1, GROUP)
    # A group of equals teaches nothing, and must not divide by 0.
    deviation = jnp.maximum(jnp.std(groups, 1, keepdims=True), 1e-3)
    return ((groups - jnp.mean(groups, 1, keepdims=True)) / deviation).ravel()


class Comparison(NamedTuple):
    """What is known of each written word, (N, WORDS)."""

    log_prob: jax.Array
    entropy: jax.Array
    divergence: jax.Array  # From the model at the start.


def compare(model: Network, start: Network, texts: jax.Array) -> Comparison:
    written = texts[:, PROMPT:]
    hidden, before = (m(texts[:, :-1])[:, PROMPT - 1 :] for m in (model, start))
    table, chunk_size = model.table[...], language.LOGITS // written.size
    policy = jaxloss.linear_softmax_statistics(hidden, table, written, chunk_size=chunk_size)
    # Over all words that could have been written: without the noise of the one that was.
    divergence = jaxloss.linear_softmax_divergence(
        hidden, table, before, start.table[...], beta=1.0, chunk_size=chunk_size
    )
    return Comparison(policy.log_prob, policy.entropy, divergence)


def loss(
    model: Network, start: Network, texts: jax.Array, advantage: jax.Array, weights: Weights
) -> tuple[jax.Array, Comparison]:
    found = compare(model, start, texts)
    losses = (
        -advantage[:, None] * found.log_prob
        - weights.entropy * found.entropy
        + weights.kl * found.divergence
    )
    return jaxloss.reduce(losses), found


@functools.partial(nnx.jit, static_argnums=0)
def step(
    weights: Weights,
    start: Network,
    model: Network,
    optimizer: nnx.Optimizer,
    wanted: jax.Array,
    beginnings: jax.Array,
    key: jax.Array,
) -> Course:
    texts = write(model, jnp.repeat(beginnings, GROUP, 0), key)
    earned = rewards(texts, wanted)
    (_, found), gradient = nnx.value_and_grad(loss, has_aux=True)(
        model, start, texts, advantages(earned), weights
    )
    optimizer.update(model, gradient)
    return Course(*map(jnp.mean, (earned, found.divergence, found.entropy)))


def tune(
    args: argparse.Namespace, model: Network, start: Network, text: language.Corpus, wanted
) -> Course:
    """What became of reward, divergence and entropy."""
    update = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LEARNING_RATE))
    optimizer = nnx.Optimizer(model, update, wrt=nnx.Param)
    weights, begins = Weights(args.kl, args.entropy), prompts(text.stream, text.known)
    rng, key = np.random.default_rng(args.seed), jax.random.key(args.seed)
    course = []
    progress = tqdm(range(args.steps), unit="step", disable=None)
    for n in progress:
        chosen = begins[rng.integers(len(begins), size=PROMPTS)]
        noise = jax.random.fold_in(key, n)
        course.append(step(weights, start, model, optimizer, wanted, chosen, noise))
        if n % 10 == 9:
            reward, kl, entropy = map(float, course[-1])
            progress.set_postfix(reward=f"{reward:.0%}", kl=f"{kl:.2f}", entropy=f"{entropy:.2f}")
    return Course(*(jnp.array(values) for values in zip(*course, strict=True)))


def draw(args, text: language.Corpus, course: Course, samples, wanted: np.ndarray) -> None:
    """Reward, divergence and entropy over steps; texts before and after."""
    figure = plt.figure(figsize=(16, 8), layout="constrained")
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=[2, 3]))
    panels = np.ravel(left.subplots(3, 1, sharex=True))
    names = (
        f"different words with {args.letter}",
        "KL to the start,\nnats per word",
        "entropy,\nnats per word",
    )
    # The mean of the last ten.
    smooth = np.ones(min(10, args.steps)) / min(10, args.steps)
    for axes, name, values in zip(panels, names, course, strict=True):
        axes.plot(np.arange(1, args.steps + 1), values, color="tab:blue", linewidth=0.5)
        means = np.convolve(values, smooth, "valid")
        axes.plot(np.arange(len(smooth), args.steps + 1), means, color="tab:orange")
        axes.set_ylabel(name)
        axes.set_ylim(0)
    panels[0].yaxis.set_major_formatter(PercentFormatter(1, 0))
    panels[-1].set_xlabel("step")

    color, axes, row = ScalarMappable(Normalize(0, 1.3), "Greens"), right.subplots(), 0
    for name, texts in samples.items():
        axes.text(0, row + 0.5, name, va="center", weight="bold")
        row += 1
        for numbers in texts:
            words = [text.known[i] for i in numbers]
            row = language.draw_words(axes, row, words, wanted[numbers], [[]] * len(words), color)
        row += 1
    axes.set_xlim(0, language.COLUMNS)
    axes.set_ylim(row, 0)
    axes.axis("off")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--letter", default="p", choices=[*string.ascii_lowercase])
    parser.add_argument("--steps", type=int, help="of tuning; 100 by default, 20 with --quick")
    parser.add_argument("--kl", type=float, default=0.1, help="what a nat of KL costs")
    parser.add_argument("--entropy", type=float, default=0.01, help="what a nat of entropy earns")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("out/tune_language_model.png")
    )
    parser.add_argument("--quick", action="store_true", help="few steps, and a small vocabulary")
    args = parser.parse_args()
    args.steps = args.steps or (20 if args.quick else 100)

    begin = time.perf_counter()
    text = language.corpus(1024 if args.quick else 4096)
    model = Network(len(text.known), nnx.Rngs(args.seed))
    first = argparse.Namespace(steps=60 if args.quick else 400, seed=args.seed, devices=1)
    language.train(first, model, text)
    start = nnx.clone(model)
    wanted = jnp.array([word.startswith(args.letter) for word in text.known], jnp.float32)
    course = tune(args, model, start, text, wanted)

    unseen = prompts(language.encode(text.test_part, text.known), text.known)[:TEXTS]
    samples, shares = {}, {}
    for name, network in ("before", start), ("after", model):
        texts = write(network, unseen, jax.random.key(args.seed))
        shares[name] = np.mean(rewards(texts, wanted))
        samples[name] = np.asarray(texts[:DRAWN])
        lines = [" ".join(text.known[i] for i in row) for row in samples[name]]
        print(f"{name}:", *lines, sep="\n  ")
    found = nnx.jit(compare)(model, start, texts)
    draw(args, text, course, samples, np.asarray(wanted))
    print(
        f"different words with {args.letter}: {shares['after']:.1%}, before {shares['before']:.1%};"
        f" KL {np.mean(found.divergence):.2f}, entropy {np.mean(found.entropy):.2f},"
        f" before {course.entropy[0]:.2f} nats per word,"
        f" in {time.perf_counter() - begin:.0f} s; picture: {args.out}"
    )


if __name__ == "__main__":
    main()
