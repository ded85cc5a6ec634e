"""The sum over all paths through blanks and labels, and each state's occupancy.

The recursion is that of Graves et al. (ICML 2006) over l', the labels with a blank before, between
and behind them: α_t(s) is the sum over the beginnings of paths that are in state s at frame t, and
β_t(s) the sum over their ends. The factor of frame t itself is in α alone, where Graves has it in
both and divides: so α_t(s) β_t(s) is the sum over all paths through the state, p(l | x) their sum
over the states of any frame, and α_t(s) β_t(s) / p(l | x) the state's occupancy.

α and β go through one loop, in opposite directions, and meet in the middle of time; from there on
each needs what the other was in the half that it came through. That is not stored but computed
again block by block, so that memory does not grow with blanks and labels.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._base import xla
from jaxloss.core.sequences import scaled
from jaxloss.core.sequences.scaled import Scaled

# Frames between normalizations. Mantissas change by less than a factor of 6 per frame, and the
# product of two of them must fit float32.
_BLOCK_FRAMES = 16
_walk = functools.partial(xla.scan, on_gpu=_BLOCK_FRAMES)


class Lattice(NamedTuple):
    """The states that paths go through: the labels, and the blanks before, between and behind.

    Axes: direction, sequence, state. The first direction makes α. The second is time reversed with
    the states in reverse order, so that the same recursion makes β. Frames come in blocks, as many
    for one half of the time as for the other.
    """

    factors: jax.Array  # (blocks, frames, B, L + 2), logarithms of what each frame says of symbols.
    moves: jax.Array  # (blocks, frames, B, 1), 0 for a frame that takes part, or -inf.
    skips: jax.Array  # (2, B, 2 L + 1), 0 for a label that differs from the one before it, or -inf.
    start: Scaled  # (2, B, 2 L + 1), certainly in the blank before the first label.


class Middle(NamedTuple):
    """Where the two directions meet."""

    state: Scaled  # α and β of the frames on either side, as `_led` makes it.
    starts: Scaled  # The same before each block on the way here.
    likelihood: Scaled  # (1, B, 1), p(l | x).


def lattice(
    symbols: jax.Array, factors: jax.Array, frames: jax.Array, labels: jax.Array
) -> Lattice:
    """The lattice of sequences of T frames and up to L labels.

    Args:
      symbols: (B, L + 2), the labels between two blanks.
      factors: (T, B, L + 2), the logarithms of the factors of these symbols in each frame.
      frames: (T, B), whether each frame takes part.
      labels: (B,), how many of the labels there are, the others standing behind.
    """
    size = max(1, min(_BLOCK_FRAMES, -(-len(factors) // 2)))
    blocks = 2 * max(1, -(-len(factors) // (2 * size)))

    def in_blocks(x):
        x = jnp.pad(x, ((0, blocks * size - len(x)), (0, 0), (0, 0)))
        return x.reshape(blocks, size, *x.shape[1:])

    frames = frames[..., None]
    states = _by_state(symbols)
    states = jnp.stack([states, states[:, ::-1]])
    differs = jnp.pad(states[..., 2:] != states[..., :-2], ((0, 0), (0, 0), (2, 0)))
    differs = differs[..., : states.shape[2]]
    return Lattice(
        in_blocks(jnp.where(frames, factors, 0)),
        scaled.exponents(in_blocks(frames), factors.dtype),
        scaled.exponents(differs, factors.dtype),
        scaled.starts(2 * (symbols.shape[1] - 2 - labels), states.shape[2], factors.dtype),
    )


def _by_state(x: jax.Array) -> jax.Array:
    """What holds of symbols, (..., L + 2), as what holds of states, (..., 2 L + 1)."""
    blank, labels = x[..., :1], jnp.repeat(x, 2, -1)[..., 1:-2]
    state = lax.broadcasted_iota(jnp.int32, labels.shape, labels.ndim - 1)
    return jnp.where(state & 1 == 0, blank, labels)


def _mirrored(x):
    """The other direction's view: directions exchanged, states reversed."""
    return jax.tree.map(lambda leaf: lax.rev(leaf, (leaf.ndim - 3, leaf.ndim - 1)), x)


class Frames(NamedTuple):
    """What the frames of a block do to paths, in both directions."""

    factors: Scaled  # (frames, 2, B, 2 L + 1)
    moves: jax.Array  # (frames, 2, B, 1)


def _frames(lattice: Lattice, block: jax.Array) -> Frames:
    def both(x):
        ahead = lax.dynamic_index_in_dim(x, block, keepdims=False)
        back = lax.dynamic_index_in_dim(x, len(x) - 1 - block, keepdims=False)
        return jnp.stack([ahead, lax.rev(back, (0, 2))], 1)

    factors = scaled.exp(both(lattice.factors))
    return Frames(jax.tree.map(_by_state, factors), both(lattice.moves))


def _led(states: Scaled) -> Scaled:
    """States behind two zeros, which is what comes into the first two from before them."""
    return scaled.pad(states, 2)


def _arrive(led: Scaled, skips: jax.Array, moves: ArrayLike = 0) -> Scaled:
    """Σ α_{t-1} over the states that lead into each: itself, the one before, that past a blank."""
    before, past_blank = led[..., 1:-1].shifted(moves), led[..., :-2].shifted(skips + moves)
    return scaled.add(led[..., 2:], before, past_blank)


def meet(lattice: Lattice) -> Middle:
    """Walks α and β to the middle of time, where Σ_s α(s) β(s) is the likelihood."""

    def step(state, frame):
        return _led(_arrive(state, lattice.skips, frame.moves) * frame.factors), None

    def block(state, number):
        state = state.normalized()
        after, _ = _walk(step, state, _frames(lattice, number))
        return after, state

    half = len(lattice.factors) // 2
    state, starts = lax.scan(block, _led(lattice.start.followed()), jnp.arange(half))
    both = _arrive(state, lattice.skips) * _mirrored(state[..., 2:])
    return Middle(state, starts, both[:1].sum().normalized())


def occupancies(lattice: Lattice, middle: Middle) -> jax.Array:
    """The occupancies α β / p(l | x), (T, B, L + 1): of all blanks together, and of each label."""

    def opposite_step(state, frame):
        frame = _mirrored(frame)
        state = _arrive(state, lattice.skips, frame.moves) * frame.factors
        return _led(state), state

    def step(state, inputs):
        frame, opposite = inputs
        arrived = _arrive(state, lattice.skips, frame.moves)
        share = arrived * _mirrored(opposite)
        return _led(arrived * frame.factors), share.mantissa_at(middle.likelihood.exponent)

    def block(state, inputs):
        number, start = inputs
        frames = _frames(lattice, number)
        # The other direction came through these frames before, starting from the end of them.
        _, opposite = _walk(opposite_step, start, frames, reverse=True)
        state, shares = _walk(step, state.normalized(), (frames, opposite))
        shares = jnp.stack([shares[:, 0], lax.rev(shares[:, 1], (0, 2))])
        blank = jnp.sum(shares[..., ::2], -1, keepdims=True)
        return state, jnp.concatenate([blank, shares[..., 1::2]], -1)

    blocks = len(lattice.factors)
    state, starts = (x.unfollowed() for x in (middle.state, middle.starts))
    numbers = blocks - 1 - jnp.arange(blocks // 2)
    _, shares = lax.scan(block, state, (numbers, starts), reverse=True)
    shares = jnp.concatenate([shares[:, 1], shares[::-1, 0]])
    shares = shares.reshape(len(shares) * shares.shape[1], *shares.shape[2:])
    total = jnp.sum(shares, -1, keepdims=True)
    return shares / jnp.where(total == 0, 1, total)
