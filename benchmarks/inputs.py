"""What the losses are given: arrays of random numbers, drawn in JAX from a key.

`jax.eval_shape` tells their shapes without drawing them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import random

Arrays = tuple[jax.Array, ...]
Inputs = Callable[[jax.Array], Arrays]  # Of a key.


def arrays(inputs: Inputs) -> Arrays:
    """Those that everyone gets."""
    return jax.jit(inputs)(random.key(0))


def shapes(inputs: Inputs) -> tuple[jax.ShapeDtypeStruct, ...]:
    return jax.eval_shape(inputs, random.key(0))


def normal(key: jax.Array, *shape: int) -> jax.Array:
    return random.normal(key, shape, jnp.float32)


def unit(key: jax.Array, *shape: int) -> jax.Array:
    """Probabilities that are neither 0 nor 1."""
    return random.uniform(key, shape, jnp.float32, 0.01, 0.99)


def signs(key: jax.Array, *shape: int) -> jax.Array:
    """1 or -1."""
    return random.rademacher(key, shape, jnp.float32)


def counts(key: jax.Array, *shape: int) -> jax.Array:
    """Numbers of events."""
    return random.poisson(key, 3, shape).astype(jnp.float32)


def flags(key: jax.Array, *shape: int) -> jax.Array:
    """0 or 1."""
    return random.bernoulli(key, shape=shape).astype(jnp.float32)


def distribution(key: jax.Array, *shape: int) -> jax.Array:
    """Probabilities of the classes, which come second."""
    p = random.uniform(key, shape, jnp.float32)
    return p / p.sum(1, keepdims=True)


def log_probabilities(key: jax.Array, *shape: int) -> jax.Array:
    """Logarithms of those."""
    return jax.nn.log_softmax(normal(key, *shape), 1)


def indices(key: jax.Array, shape: tuple[int, ...], count: int, first: int = 0) -> jax.Array:
    return random.randint(key, shape, first, count, jnp.int32)


def drawn(*draws: Callable[[jax.Array], jax.Array]) -> Inputs:
    """Each from a key of its own."""
    return lambda key: tuple(
        draw(own) for draw, own in zip(draws, random.split(key, len(draws)), strict=True)
    )


def of_one_shape(shape: tuple[int, ...], *draws: Callable[..., jax.Array]) -> Inputs:
    return drawn(*(lambda key, draw=draw: draw(key, *shape) for draw in draws))


def numbers(count: int, *shape: int) -> Inputs:
    """Normally distributed arrays."""
    return of_one_shape(shape, *(normal,) * count)


def classes(*shape: int, draw: Callable[..., jax.Array] = normal) -> Inputs:
    """Logits, or what else is drawn, with the classes second, and class indices."""
    return drawn(
        lambda key: draw(key, *shape),
        lambda key: indices(key, (shape[0], *shape[2:]), shape[1]),
    )


def several_labels(*shape: int) -> Inputs:
    """Scores, and three labels for each example, padded with -1."""

    def labels(key):
        first = jnp.argsort(random.uniform(key, shape), 1)[:, :3].astype(jnp.int32)
        return jnp.pad(first, ((0, 0), (0, shape[1] - 3)), constant_values=-1)

    return drawn(lambda key: normal(key, *shape), labels)


def pairs(*shape: int) -> Inputs:
    """Two vectors for each example, and whether they belong together: 1 or -1."""
    vectors = (lambda key: normal(key, *shape),) * 2
    return drawn(*vectors, lambda key: signs(key, shape[0]))


def sequences(batch: int, frames: int, symbols: int, labels: int) -> Inputs:
    """Logits (frames, batch, symbols), labels, and lengths that use all of both."""
    return drawn(
        lambda key: normal(key, frames, batch, symbols),
        lambda key: indices(key, (batch, labels), symbols, first=1),
        lambda key: jnp.full(batch, frames, jnp.int32),
        lambda key: jnp.full(batch, labels, jnp.int32),
    )


def lattices(batch: int, frames: int, rows: int, symbols: int) -> Inputs:
    """Logits of a transducer and its labels, without padding."""
    return drawn(
        lambda key: normal(key, batch, frames, rows, symbols),
        lambda key: indices(key, (batch, rows - 1), symbols, first=1),
    )


def recordings(batch: int, frames: int, symbols: int, labels: int) -> Inputs:
    """Log probabilities of each frame, and labels, without padding."""
    return drawn(
        lambda key: jax.nn.log_softmax(normal(key, batch, frames, symbols)),
        lambda key: indices(key, (batch, labels), symbols, first=1),
    )


def features(examples: int, width: int, count: int) -> Inputs:
    """Features, a kernel (classes, features), and class indices."""
    return drawn(
        lambda key: normal(key, examples, width),
        lambda key: 0.05 * normal(key, count, width),
        lambda key: indices(key, (examples,), count),
    )


def adaptive(examples: int, width: int, cutoffs: tuple[int, ...]) -> Inputs:
    """Features, labels, and the matrices of an adaptive softmax: the head, then pairs of a tail."""
    tail = []
    for i, (first, end) in enumerate(itertools.pairwise(cutoffs), start=1):
        size = width // 4**i
        tail += [(size, width), (end - first, size)]
    matrices = (cutoffs[0] + len(cutoffs) - 1, width), *tail
    return drawn(
        lambda key: normal(key, examples, width),
        # Words' frequencies fall as their rank grows.
        lambda key: (cutoffs[-1] ** random.uniform(key, (examples,)) - 1).astype(jnp.int32),
        *(lambda key, size=size: 0.05 * normal(key, *size) for size in matrices),
    )


def half(inputs: Inputs) -> Inputs:
    """The same in bfloat16."""
    return lambda key: tuple(
        x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x for x in inputs(key)
    )
