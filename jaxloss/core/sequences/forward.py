"""The loss of CTC with its forward variables: how likely frames so far read labels so far."""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._base import checks, xla
from jaxloss._base.call import public
from jaxloss.core.sequences.ctc import ctc_loss


@public(static=("blank_id",), labels=("labels",))
def ctc_loss_with_forward_probs(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    *,
    blank_id: int = 0,
    log_epsilon: ArrayLike = -1e5,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`ctc_loss`, and the logarithms of its forward variables.

    α_blank(t, n) = log P(frames 0 to t read the first n labels and end in a blank), and
    α_label(t, n) the same for the first n + 1 labels and an end in label n. In the last frame
    α_blank includes both ends: -α_blank(T - 1, n) is the loss of the first n labels.

    -inf, with gradient 0, where no path leads. The loss is that of `ctc_loss`, with its edge cases,
    but padded labels must stand at the end. A padded frame repeats the frame before it. An example
    with a bad label is NaN in all three results.

    Args:
      logits: floating-point array (B, T, C), unnormalized log probabilities of C symbols, the blank
        among them, in each of T frames.
      logit_paddings: (B, T), not 0 where a frame is padding.
      labels: integer array (B, L), without blanks.
      label_paddings: (B, L), not 0 where a label is padding.
      blank_id: the index of the blank.
      log_epsilon: optax's stand-in for log 0; without effect, as none is needed here.

    Returns:
      The losses (B,), α_blank (T, B, L + 1) and α_label (T, B, L); at least float32.

    Raises:
      TypeError: `logits` is not floating-point or `labels` not integer.
      ValueError: the shapes do not fit or `blank_id` is no symbol.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]]))
      >>> losses, blank, label = jaxloss.ctc_loss_with_forward_probs(
      ...     logits, jnp.zeros((1, 2)), jnp.array([[1]]), jnp.zeros((1, 1)))
      >>> print(jnp.exp(-losses), jnp.exp(blank[0, 0]), jnp.exp(label[:, 0, 0]).round(4))
      [0.3125] [0.5 0. ] [0.25   0.1875]

    Source: Graves et al., Connectionist Temporal Classification, ICML 2006.
    """
    (scores,) = checks.arrays(logits=logits)
    if scores.ndim != 3:
        checks.fail(ValueError, "logits", "have shape (B, T, C)", scores.shape)
    sequences = logits, logit_paddings, labels, label_paddings
    losses = ctc_loss(*sequences, blank_id=blank_id, log_epsilon=log_epsilon)
    frames, present = (jnp.asarray(x) == 0 for x in (logit_paddings, label_paddings))
    labels = checks.labels("labels", labels, present.shape)
    known = (labels >= 0) & (labels < scores.shape[2])
    log_probs = jax.nn.log_softmax(jnp.where(frames[..., None], scores, 0))
    symbols = _of_symbols(log_probs, labels, present & known)
    blanks = log_probs[:, :, blank_id, None]
    forward = _forward(jnp.moveaxis(blanks, 1, 0), jnp.moveaxis(symbols, 1, 0), labels, frames.T)
    bad = jnp.any(present & ~known, -1)[:, None]
    blank, label = (xla.nan_where(bad, x) for x in forward)
    return losses, blank, label


def _of_symbols(log_probs: jax.Array, labels: jax.Array, present: jax.Array) -> jax.Array:
    """The logarithm of each label's probability in each frame, (B, T, L)."""
    # By comparison: the transpose of a gather is a scatter.
    symbol = lax.broadcasted_iota(labels.dtype, (1, 1, log_probs.shape[2]), 2)
    is_symbol = (labels[..., None] == symbol)[:, None]
    found = jnp.sum(jnp.where(is_symbol, log_probs[:, :, None], 0), -1)
    return jnp.where(present[:, None], found, -jnp.inf)


def _forward(
    blanks: jax.Array, symbols: jax.Array, labels: jax.Array, frames: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """α of the blanks and of the labels, with time in front."""
    differs = jnp.pad(labels[:, 1:] != labels[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    # Before the first frame, made of all arguments as `jax.shard_map` asks.
    nothing = jnp.sum(blanks, 0) * 0 + jnp.sum(jnp.where(symbols == -jnp.inf, 0, symbols), 0) * 0
    never = jnp.where(nothing == 0, -jnp.inf, nothing)
    start = jnp.pad(never, ((0, 0), (1, 0)))

    def behind(label):
        """α of the label in front of each blank."""
        return jnp.pad(label, ((0, 0), (1, 0)), constant_values=-jnp.inf)

    def step(so_far, frame):
        blank, label = so_far
        of_blank, of_symbols, takes_part = frame
        skipped = jnp.where(differs, behind(label)[:, :-1], -jnp.inf)
        next_label = of_symbols + _log_sum(label, blank[:, :-1], skipped)
        next_blank = of_blank + _log_sum(blank, behind(label))
        there = takes_part[:, None]
        after = jnp.where(there, next_blank, blank), jnp.where(there, next_label, label)
        return after, after

    (blank, label), (blanks, symbols) = xla.scan(step, (start, never), (blanks, symbols, frames))
    if len(blanks):
        blanks = jnp.concatenate([blanks[:-1], _log_sum(blank, behind(label))[None]])
    return blanks, symbols


def _log_sum(*terms: jax.Array) -> jax.Array:
    """log Σ exp, safe where all are -inf; a formula, as `lax.scan` may lose a rule."""
    peak = lax.stop_gradient(functools.reduce(jnp.maximum, terms))
    peak = jnp.where(peak == -jnp.inf, 0, peak)
    total = functools.reduce(operator.add, (jnp.exp(x - peak) for x in terms))
    nothing = total == 0
    return jnp.where(nothing, -jnp.inf, peak + jnp.log(jnp.where(nothing, 1, total)))
