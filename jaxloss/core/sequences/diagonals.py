"""The sum over all paths through frames and labels of a transducer, and each step's occupancy.

The recursion is that of Graves (Sequence Transduction with Recurrent Neural Networks, 2012) over
nodes (t, u), before which t frames have been left behind and u labels read. From a node a path
leaves the frame with a blank, of probability ∅(t, u), or reads the next label, y(t, u), and stays:

    α(t, u) = α(t - 1, u) ∅(t - 1, u) + α(t, u - 1) y(t, u - 1), the sum over beginnings of paths,
    β(t, u) = ∅(t, u) β(t + 1, u) + y(t, u) β(t, u + 1), the sum over their ends,

so that α(t, u) β(t, u) is the sum over all paths through the node, and Pr(y | x) its sum over any
diagonal n = t + u. The occupancies of the two steps from it are α(t, u) ∅(t, u) β(t + 1, u) and
α(t, u) y(t, u) β(t, u + 1), divided by Pr(y | x).

Each diagonal is made from the one before it at once. α and β go through one loop, in opposite
directions, and meet in the middle of it; from there on each finds what the other was.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._base import xla
from jaxloss.core.sequences import scaled
from jaxloss.core.sequences.scaled import Scaled


class Logarithm(NamedTuple):
    """The logarithm of a factor, which may be 0, as two summands."""

    large: jax.Array  # It alone may be infinite.
    small: jax.Array


class Steps(NamedTuple):
    """What a step from each node multiplies a path with.

    Axes: diagonal, direction, sequence, label. The first direction makes α. The second goes through
    diagonals and labels in reverse order, so that the same recursion makes β.
    """

    stay: Logarithm  # With a blank, to the same number of labels.
    come: Logarithm  # With a label, to this number of labels.


class Lattice(NamedTuple):
    steps: Steps  # An even number of diagonals, so that there is a middle.
    start: Scaled  # (2, B, U + 1), certainly in the first node.


class Middle(NamedTuple):
    """Where the two directions meet."""

    state: Scaled  # (2, B, U + 1), α and β in the middle.
    before: Scaled  # (diagonals / 2, 2, B, U + 1), the same before each step on the way there.
    likelihood: Scaled  # (1, B, 1), Pr(y | x).


def lattice(blank: Logarithm, label: Logarithm, frames: jax.Array, labels: jax.Array) -> Lattice:
    """The lattice of sequences of up to T frames and U labels.

    Args:
      blank: (B, T, U + 1), the factors of the blank at each node.
      label: (B, T, U + 1), those of the next label.
      frames: (B,), how many of the frames there are, the others standing behind.
      labels: (B,), how many of the labels there are, the others standing behind.
    """
    size, width = blank.large.shape[1:]
    steps = size + width - 1
    steps = steps + steps % 2
    t = lax.broadcasted_iota(jnp.int32, (1, steps + 1, 1), 1)
    u = lax.broadcasted_iota(jnp.int32, (1, 1, width), 2)
    start = scaled.starts(width - 1 - labels, width, blank.large.dtype)
    frames, labels = frames[:, None, None], labels[:, None, None]
    # Behind its last frame a path waits, if it has read all labels.
    node, waits = (t < frames) & (u <= labels), (t >= frames) & (u == labels)

    def by_step(factor, takes_part, fill):
        large, small = (jnp.pad(x, ((0, 0), (0, steps + 1 - size), (0, 0))) for x in factor)
        small = jnp.where(takes_part & (large > -jnp.inf), small, 0)
        return Logarithm(by_diagonal(jnp.where(takes_part, large, fill)), by_diagonal(small))

    def both(ahead, back):
        return jax.tree.map(lambda x, y: jnp.stack([x, lax.rev(y, (0, 2))], 1), ahead, back)

    def from_before(x, fill):
        return jnp.pad(x[..., :-1], ((0, 0), (0, 0), (1, 0)), constant_values=fill)

    stay = by_step(blank, node, scaled.exponents(waits, blank.large.dtype))
    come = by_step(label, node & (u < labels), -jnp.inf)
    come_here = Logarithm(from_before(come.large, -jnp.inf), from_before(come.small, 0))

    return Lattice(Steps(both(stay, stay), both(come_here, come)), start)


def by_diagonal(x: jax.Array) -> jax.Array:
    """What holds of nodes, (B, diagonals + 1, U + 1), by diagonal: (diagonals, B, U + 1).

    Places before the first frame get what holds of some node behind the last one.
    """
    examples, size, width = x.shape
    # Rows of one label each, one longer than there are diagonals, stand one behind the other: cut
    # into rows as long as there are diagonals, each begins one later than the one before.
    x = jnp.swapaxes(x, 1, 2).reshape(examples, width * size)[:, : width * (size - 1)]
    return jnp.moveaxis(x.reshape(examples, width, size - 1), 2, 0)


def by_node(x: jax.Array, frames: int) -> jax.Array:
    """What holds of diagonals by node, (B, T, U + 1): undoes `by_diagonal`."""
    diagonals, examples, width = x.shape
    x = jnp.moveaxis(x, 0, 2).reshape(examples, width * diagonals)
    x = jnp.pad(x, ((0, 0), (0, width))).reshape(examples, width, diagonals + 1)
    return jnp.swapaxes(x[..., :frames], 1, 2)


def _mirrored(x):
    """The other direction's view: directions exchanged, labels reversed."""
    return jax.tree.map(lambda leaf: lax.rev(leaf, (0, 2)), x)


def _arrivals(state: Scaled, step: Steps) -> tuple[Scaled, Scaled]:
    """What comes to the nodes of the next diagonal by a blank, and by a label."""
    stay, come = scaled.exp_of_sum(*step.stay), scaled.exp_of_sum(*step.come)
    return state * stay, scaled.pad(state, 1)[..., :-1] * come


def meet(lattice: Lattice) -> Middle:
    """Walks α and β to the middle, where the sum of α β is the likelihood."""

    def walk(state, step):
        return scaled.add(*_arrivals(state, step)).normalized(), state.unfollowed()

    half = len(lattice.steps.stay.large) // 2
    steps = jax.tree.map(lambda x: x[:half], lattice.steps)
    state, before = xla.scan(walk, lattice.start.followed(), steps, on_gpu=4)
    likelihood = (state * _mirrored(state))[:1].sum().normalized()
    return Middle(state.unfollowed(), before, likelihood)


def occupancies(lattice: Lattice, middle: Middle) -> tuple[jax.Array, jax.Array]:
    """The occupancies of steps with a blank and of those with a label: (diagonals, B, U + 1).

    Those of a diagonal add up to 1, or are all 0 where no path fits.
    """

    def walk(state, inputs):
        step, opposite = inputs
        arrivals = _arrivals(state, step)
        shares = (x * _mirrored(opposite) for x in arrivals)
        shares = tuple(x.mantissa_at(middle.likelihood.exponent) for x in shares)
        return scaled.add(*arrivals).normalized(), shares

    half = len(middle.before.mantissa)
    steps = jax.tree.map(lambda x: x[half:], lattice.steps)
    opposite = jax.tree.map(lambda x: x[::-1], middle.before)
    _, (blank, label) = xla.scan(walk, middle.state, (steps, opposite), on_gpu=4)
    total = jnp.sum(blank + label, -1, keepdims=True)
    total = jnp.where(total == 0, 1, total)
    blank, label = blank / total, label / total

    def in_order(ahead, back):
        return jnp.concatenate([back[::-1, :, ::-1], ahead])

    # Of α by the node that a label's step comes to, of β by that which it starts from.
    ahead = jnp.pad(label[:, 0, :, 1:], ((0, 0), (0, 0), (0, 1)))
    return in_order(blank[:, 0], blank[:, 1]), in_order(ahead, label[:, 1])
