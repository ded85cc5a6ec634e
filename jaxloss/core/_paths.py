"""The sum over all paths through blanks and labels, and each state's share in it.

The recursion is that of Graves et al. (ICML 2006) over the labels with a blank before, between and
behind them. Forward and backward variables go through one loop, in opposite directions, and meet
in the middle of time; from there on each finds the other's values of the first half. These are not
stored but computed again block by block, so that memory does not grow with blanks and labels.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.core import _scaled
from jaxloss.core._scaled import Scaled

# Frames between normalisations. Mantissas change by less than a factor of 6 per frame, and the
# product of two of them must fit float32.
_BLOCK = 16


class Lattice(NamedTuple):
    """The states that paths go through: the labels, and the blanks before, between and behind.

    Axes: direction, state, sequence. The second direction is time reversed with the states in
    reverse order, so that one recursion gives both the forward and the backward variables. Frames
    come in blocks, as many for one half of the time as for the other; padding and what fills the
    last block are frames at the end in which the blank is certain, which no likelihood notices.
    """

    blanks: jax.Array  # (blocks, frames, 1, B), logarithms of the factors of each frame.
    labels: jax.Array  # (blocks, frames, L, B)
    skips: Scaled  # (2, L, B), 1 for a label that differs from the one before it.
    start: State  # Certainly in the blank before the first label.


class State(NamedTuple):
    """The sum over all ways into each state so far."""

    blanks: Scaled  # (2, L + 1, B)
    labels: Scaled  # (2, L, B)


class Middle(NamedTuple):
    """Where the two directions meet."""

    state: State
    starts: State  # Before each block on the way here.
    likelihood: Scaled  # (1, 1, B)


def lattice(blanks: jax.Array, labels: jax.Array, differs: jax.Array, counts: jax.Array) -> Lattice:
    """The lattice of sequences of T frames.

    Args:
      blanks: (T, 1, B), the logarithm of the blank's factor in each frame.
      labels: (T, L, B), those of the labels.
      differs: (L - 1, B), whether each label differs from the one after it.
      counts: (B,), how many of the labels there are, the others standing behind.
    """
    size, dtype = labels.shape[1], labels.dtype
    either_way = [jnp.pad(x, ((1, 0), (0, 0))) for x in (differs, differs[::-1])]
    first = jnp.stack([jnp.zeros_like(counts), size - counts])[:, None]
    start = lax.broadcasted_iota(counts.dtype, (1, size + 1, 1), 1) == first
    nowhere = start[:, 1:] & False  # Made of `start`, so that it is sharded alike.
    return Lattice(
        _in_blocks(blanks, 0),
        _in_blocks(labels, -jnp.inf),
        _scaled.indicator(jnp.stack(either_way)[:, :size], dtype),
        State(_scaled.indicator(start, dtype), _scaled.indicator(nowhere, dtype)),
    )


def _in_blocks(x: jax.Array, fill: float) -> jax.Array:
    """Cuts the frames into an even number of blocks."""
    frames = len(x)
    size = max(1, min(_BLOCK, -(-frames // 2)))
    blocks = 2 * max(1, -(-frames // (2 * size)))
    padding = ((0, blocks * size - frames), (0, 0), (0, 0))
    return jnp.pad(x, padding, constant_values=fill).reshape(blocks, size, *x.shape[1:])


def _mirrored(x):
    """The other direction's view: directions exchanged, states reversed."""
    return jax.tree.map(lambda leaf: lax.rev(leaf, (leaf.ndim - 3, leaf.ndim - 2)), x)


def _factors(lattice: Lattice, block: jax.Array) -> tuple[Scaled, Scaled]:
    """The factors of the frames of a block, in both directions: (frames, 2, states, B)."""

    def both(logs):
        ahead = lax.dynamic_index_in_dim(logs, block, keepdims=False)
        back = lax.dynamic_index_in_dim(logs, len(logs) - 1 - block, keepdims=False)
        return _scaled.exp(jnp.stack([ahead, lax.rev(back, (0, 1))], 1))

    return both(lattice.blanks), both(lattice.labels)


def _arrive(state: State, skips: Scaled) -> State:
    """Sums what may come into each state: from itself, from the one before, and past a blank."""
    blanks, labels = state
    before = _scaled.pad(labels)  # The label before each blank; there is none before the first.
    return State(
        _scaled.add(blanks, before),
        _scaled.add(labels, blanks[:, :-1], before[:, :-1] * skips),
    )


def _emit(arrived: State, factors: tuple[Scaled, Scaled]) -> State:
    return State(arrived.blanks * factors[0], arrived.labels * factors[1])


def _normalized(state: State) -> State:
    return State(*(x.normalized() for x in state))


def meet(lattice: Lattice) -> Middle:
    """Walks both directions to the middle of time, and adds up where they meet."""

    def frame(state, factors):
        return _emit(_arrive(state, lattice.skips), factors), None

    def block(state, number):
        after, _ = lax.scan(frame, _normalized(state), _factors(lattice, number))
        return after, state

    half = len(lattice.labels) // 2
    start = State(*(x.followed() for x in lattice.start))
    state, starts = lax.scan(block, start, jnp.arange(half))
    pairs = zip(_arrive(state, lattice.skips), _mirrored(state), strict=True)
    return Middle(state, starts, _scaled.add(*((a * b)[:1].sum(1) for a, b in pairs)))


def occupancies(lattice: Lattice, middle: Middle) -> tuple[jax.Array, jax.Array]:
    """The shares of all blanks, (T, 1, B), and of each label, (T, L, B), in the likelihood."""

    def opposite_frame(state, factors):
        state = _emit(_arrive(state, lattice.skips), factors)
        return state, state

    def frame(state, inputs):
        factors, opposite = inputs
        arrived = _arrive(state, lattice.skips)
        pairs = zip(arrived, opposite, strict=True)
        return _emit(arrived, factors), tuple((a * b).over(middle.likelihood) for a, b in pairs)

    def block(state, inputs):
        number, start = inputs
        factors = _factors(lattice, number)
        # The other direction came through these frames before, starting from the end of them.
        _, opposite = lax.scan(opposite_frame, _normalized(start), _mirrored(factors), reverse=True)
        state, found = lax.scan(frame, _normalized(state), (factors, _mirrored(opposite)))
        return state, (jnp.sum(found[0], 2, keepdims=True), found[1])

    def in_time(x):
        ahead, back = x[:, :, 0], lax.rev(x[:, :, 1], (0, 1, 2))
        both = jnp.concatenate([back, ahead])
        return both.reshape(both.shape[0] * both.shape[1], *both.shape[2:])

    blocks = len(lattice.labels)
    numbers = jnp.arange(blocks // 2, blocks)
    state, starts = (State(*(x.unfollowed() for x in s)) for s in (middle.state, middle.starts))
    starts = jax.tree.map(lambda x: x[::-1], starts)
    _, found = lax.scan(block, state, (numbers, starts))
    blanks, labels = map(in_time, found)
    # Their sum is 1 but for the rounding of the whole recursion, which this takes out.
    total = blanks + jnp.sum(labels, 1, keepdims=True)
    total = jnp.where(total == 0, 1, total)
    return blanks / total, labels / total
