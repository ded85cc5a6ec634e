"""torch's and torchaudio's losses for sequences that are not aligned in time."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxloss._base import checks, host
from jaxloss._base.call import public
from jaxloss._base.reduction import Reduction
from jaxloss.core.sequences import alignment, batch, rnnt
from jaxloss.core.sequences import ctc as core
from jaxloss.functional._torch import reduced, torch_function

_CALLER = checks.Caller("ctc_loss", {})


def ctc_loss(
    log_probs: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike | Sequence[int],
    target_lengths: ArrayLike | Sequence[int],
    blank: int = 0,
    reduction: Reduction = "mean",
    zero_infinity: bool = False,
) -> jax.Array:
    """As torch.nn.functional.ctc_loss, over what `jaxloss.ctc_loss` is made of.

    Differs from torch: the gradient is the derivative with respect to `log_probs`, which need not
    be normalized, whereas torch's is right only after a log_softmax; if no path fits, it is 0.
    Second derivatives exist. A target outside [0, C) or a length that does not fit gives NaN for
    that example instead of an error. Float32 stays accurate for thousands of frames.

    Args:
      log_probs: log probabilities, floating-point, (T, N, C) or (T, C).
      targets: integer array, without blanks: (N, S), padded after the target lengths, or
        concatenated in one dimension; unbatched (S). Concatenated targets whose values and lengths
        are known are made into rows of one of few sizes, so that few programs are compiled. Under
        your own `jax.jit` they are not known: it compiles for every total length, and needs target
        lengths that are Python or numpy integers to save memory. Pass it padded rows instead.
      input_lengths: how many frames of each example take part, at most T: (N), or () unbatched;
        an integer array or Python integers.
      target_lengths: how many targets each example has, given like `input_lengths`.
      blank: the index of the blank.
      reduction: "none", "mean" or "sum". The mean is that of each loss divided by its target
        length, where a length of 0 counts as 1.
      zero_infinity: whether infinite losses become 0.

    Returns:
      A scalar, or one loss per example for "none"; at least float32.

    Raises:
      TypeError: `log_probs` is not floating-point, or `targets` or a length not integer.
      ValueError: the shapes do not fit, `blank` is no symbol, or the reduction is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import functional as F
      >>> log_probs = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]))
      >>> loss = F.ctc_loss(log_probs, jnp.array([1]), 2, 1)
      >>> print(jnp.exp(-loss))  # Paths "1 -", "- 1" and "1 1": 1/8 + 1/8 + 1/16.
      0.3125

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.ctc_loss.html
    """
    if _rank(targets) == 1 and _rank(log_probs) == 3:
        targets = _rows(targets, target_lengths, jnp.shape(log_probs)[1])
    return _ctc_loss(
        log_probs,
        targets,
        _lengths(input_lengths),
        _lengths(target_lengths),
        blank,
        reduction=reduction,
        zero_infinity=zero_infinity,
    )


@torch_function(
    static=("blank", "zero_infinity"),
    labels=("targets", "input_lengths", "target_lengths"),
    names={"labels": "targets", "targets": "targets", "log_probs": "log_probs"},
    name="ctc_loss",
)
def _ctc_loss(
    log_probs: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int,
    *,
    reduction: Reduction,
    zero_infinity: bool,
) -> jax.Array:
    (log_probs,) = checks.arrays(log_probs=log_probs)
    if log_probs.ndim not in (2, 3):
        checks.fail(ValueError, "log_probs", "have shape (T, N, C) or (T, C)", log_probs.shape)
    batched = log_probs.ndim == 3
    scores = log_probs if batched else log_probs[:, None]
    frames, examples, classes = scores.shape
    batch.check_blank("blank", blank, classes)
    targets = jnp.asarray(targets)
    if not batched and targets.ndim == 1:
        targets = targets[None]
    if targets.ndim != 2 or targets.shape[0] != examples:
        rule = f"have shape ({examples}, S), or hold all targets in one dimension"
        swapped = targets.ndim == 2 and targets.shape[0] == frames
        hint = ": `log_probs` is (T, N, C), so write `log_probs.swapaxes(0, 1)`" if swapped else ""
        checks.fail(ValueError, "targets", rule, f"{targets.shape}{hint}")
    lengths = {"input_lengths": input_lengths, "target_lengths": target_lengths}
    if not batched:
        lengths = {name: _with_batch(x) for name, x in lengths.items()}
    sequences, wrong = _sequences(scores, targets, frames, lengths, blank)
    sequences = sequences._replace(bad=sequences.bad | wrong)
    losses = core.losses_of_paths(sequences, blank, core.LOG_PROBS)
    if zero_infinity:
        losses = jnp.where(losses == jnp.inf, 0, losses)
    if reduction == "mean":
        losses = losses / jnp.maximum(batch.count(sequences.present), 1).astype(losses.dtype)
    return reduced(losses if batched else losses[0], reduction)


def _with_batch(lengths):
    lengths = jnp.asarray(lengths)
    return lengths if lengths.ndim else lengths[None]


def _sequences(scores, targets, frames, lengths, blank):
    """Sequences of which the first frames and targets take part, and where a length is wrong."""
    examples, most = targets.shape
    present, wrong = [], jnp.zeros(examples, bool)
    for (name, value), size in zip(lengths.items(), (frames, most), strict=True):
        value = checks.labels(name, value, (examples,))
        fits = (value >= 0) & (value <= size)
        checks.require(fits, name, f"be in [0, {size}]")
        wrong = wrong | ~fits
        present.append(jnp.arange(size, dtype=value.dtype)[None] < value[:, None])
    return batch.sequences(scores, present[0], targets, present[1], blank), wrong


def rnnt_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    logit_lengths: ArrayLike | Sequence[int],
    target_lengths: ArrayLike | Sequence[int],
    blank: int = -1,
    clamp: ArrayLike = -1.0,
    reduction: Reduction = "mean",
    fused_log_softmax: bool = True,
) -> jax.Array:
    """As torchaudio.functional.rnnt_loss, over what `jaxloss.rnnt_loss` is made of.

    Differs from torchaudio: second derivatives exist, and half precision is computed in float32. A
    target outside [0, C) or a length that does not fit gives NaN for that example instead of an
    error. If no path fits, the loss is +inf and its gradient 0. Shapes are not cut to the greatest
    lengths, and need not agree with them.

    Args:
      logits: the joiner's output, floating-point, (N, T, U + 1, C): row u after u targets have
        been read.
      targets: integer array (N, U), without blanks, padded after the target lengths.
      logit_lengths: how many frames of each example take part, at most T: (N).
      target_lengths: how many targets each example has, at most U: (N).
      blank: the index of the blank; below 0 it counts from the end.
      clamp: if above 0, the bound on the magnitude of each entry in the gradient of an example's
        loss, before the reduction. It may be traced.
      reduction: "none", "mean" or "sum". The mean is that of the losses.
      fused_log_softmax: whether `logits` are logits; if not, they are log probabilities, and the
        gradient is that with respect to these.

    Returns:
      A scalar, or one loss per example for "none"; at least float32.

    Raises:
      TypeError: `logits` is not floating-point, or `targets` or a length not integer.
      ValueError: the shapes do not fit, `blank` is no symbol, or the reduction is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import functional as F
      >>> logits = jnp.log(jnp.full((1, 2, 2, 2), 0.5))
      >>> loss = F.rnnt_loss(logits, jnp.array([[1]]), jnp.array([2]), jnp.array([1]), blank=0)
      >>> print(jnp.exp(-loss))  # Paths "1 - -" and "- 1 -": 1/8 + 1/8.
      0.25

    Source: https://docs.pytorch.org/audio/stable/generated/torchaudio.functional.rnnt_loss.html
    """
    return _rnnt_loss(
        logits,
        targets,
        _lengths(logit_lengths),
        _lengths(target_lengths),
        blank,
        clamp,
        reduction=reduction,
        fused_log_softmax=fused_log_softmax,
    )


@torch_function(
    static=("blank", "fused_log_softmax"),
    labels=("targets", "logit_lengths", "target_lengths"),
    absent_at_default=("clamp",),
    names={"labels": "targets", "targets": "targets", "logits": "logits"},
    name="rnnt_loss",
)
def _rnnt_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    logit_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int,
    clamp: ArrayLike = -1.0,
    *,
    reduction: Reduction,
    fused_log_softmax: bool,
) -> jax.Array:
    (logits,) = checks.arrays(logits=logits)
    if logits.ndim != 4:
        checks.fail(ValueError, "logits", "have shape (N, T, U + 1, C)", logits.shape)
    examples, frames, rows, classes = logits.shape
    batch.check_blank("blank", blank, classes, least=-classes)
    targets = checks.labels("targets", targets, (examples, rows - 1))
    lengths = {"logit_lengths": logit_lengths, "target_lengths": target_lengths}
    blank = operator.index(blank) % classes
    sequences, wrong = _sequences(logits, targets, frames, lengths, blank)
    sequences = sequences._replace(bad=sequences.bad | wrong)
    most = None if isinstance(clamp, float) else checks.number("clamp", clamp, logits)
    slopes = rnnt.Slopes(jnp.zeros((), logits.dtype), most)
    return reduced(rnnt.losses_of_paths(sequences, slopes, blank, fused_log_softmax), reduction)


def forced_align(
    log_probs: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike | Sequence[int] | None = None,
    target_lengths: ArrayLike | Sequence[int] | None = None,
    blank: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """As torchaudio.functional.forced_align, over what `jaxloss.ctc_forced_alignment` is made of.

    Differs from torchaudio: any batch size. Too few frames, a blank among the targets or a length
    that does not fit, which are errors there, give the symbol -1 and the score -inf in each frame
    of that example, and an error under checkify; a target outside [0, C) gives -1 and NaN. Of
    several equally good paths it is one that reads targets later. The scores differentiate along
    the path.

    Args:
      log_probs: log probabilities, taken as they are, floating-point (N, T, C).
      targets: integer array (N, L), without blanks, padded after the target lengths.
      input_lengths: how many frames of each example take part, at most T: (N); None for T.
      target_lengths: how many targets each example has, at most L: (N); None for L.
      blank: the index of the blank.

    Returns:
      The symbols (N, T) and their log probabilities (N, T); -1 and 0 after the input lengths.

    Raises:
      TypeError: `log_probs` is not floating-point, or `targets` or a length not integer.
      ValueError: the shapes do not fit or `blank` is no symbol.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import functional as F
      >>> log_probs = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]]))
      >>> symbols, scores = F.forced_align(log_probs, jnp.array([[1]]))
      >>> print(symbols, jnp.exp(scores))
      [[0 1]] [[0.5 0.5]]

    Source: https://docs.pytorch.org/audio/stable/generated/torchaudio.functional.forced_align.html
    """
    given = (log_probs, targets, _lengths(input_lengths), _lengths(target_lengths), blank)
    return _forced_align(*given)


@public(
    static=("blank",),
    labels=("targets", "input_lengths", "target_lengths"),
    names={"labels": "targets"},
    name="forced_align",
)
def _forced_align(
    log_probs: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike | None,
    target_lengths: ArrayLike | None,
    blank: int,
) -> tuple[jax.Array, jax.Array]:
    (log_probs,) = checks.arrays(log_probs=log_probs)
    if log_probs.ndim != 3:
        checks.fail(ValueError, "log_probs", "have shape (N, T, C)", log_probs.shape)
    examples, frames, classes = log_probs.shape
    batch.check_blank("blank", blank, classes)
    targets = checks.array("targets", targets)
    if targets.ndim != 2 or targets.shape[0] != examples:
        checks.fail(ValueError, "targets", f"have shape ({examples}, L)", targets.shape)
    lengths = {
        name: jnp.full(examples, size) if value is None else value
        for name, value, size in (
            ("input_lengths", input_lengths, frames),
            ("target_lengths", target_lengths, targets.shape[1]),
        )
    }
    sequences, wrong = _sequences(log_probs, targets, frames, lengths, blank)
    wrong = wrong | jnp.any(sequences.present & (sequences.labels == blank), 1)
    path = alignment.best_path(sequences, blank, False)
    wrong = (wrong | (path.score == -jnp.inf))[:, None]
    checks.require(~wrong, "targets", "be read by a path of `input_lengths` frames")
    failed = sequences.frames & (wrong | sequences.bad[:, None])
    # The score is a sum, in which 0 stands where no path fits.
    scores = jnp.where(failed, jnp.where(wrong, -jnp.inf, path.score[:, None]), path.log_probs)
    return jnp.where(failed, -1, path.symbols), scores


def _rank(value):
    """Its dimensions, None for lists of unequal rows; those are refused behind."""
    try:
        return np.ndim(value)
    except ValueError:
        return None


def _lengths(lengths) -> Any:
    """Python integers as an array, so that other integers are no other program."""
    if isinstance(lengths, int | Sequence) and not isinstance(lengths, str):
        try:
            return np.asarray(lengths, None if np.size(lengths) else np.int32)
        except ValueError:  # Unequal rows, which are refused behind.
            return lengths
    return lengths


def _rows(targets, target_lengths, examples):
    """Targets that stand one behind the other as a row for each example.

    On the host if possible: there the total length, which hardly any two batches share, shapes no
    compiled program, and neither does the longest.
    """
    targets, lengths = map(host.integers, (targets, _lengths(target_lengths)))
    if _is_known(targets) and _is_known(lengths):
        values, counts = (np.asarray(jax.device_get(x)) for x in (targets, lengths))
        whole = counts.dtype.kind in "iu" and counts.shape == (examples,)
        if whole and counts.min(initial=0) >= 0 and counts.sum() == values.size:
            present = np.arange(_rounded_up(int(counts.max(initial=0))))[None] < counts[:, None]
            rows = np.zeros(present.shape, values.dtype)
            rows[present] = values
            return rows
    return _padded(targets, lengths, examples)


def _is_known(value):
    """Whether the host can read it, which needs neither a trace nor another process."""
    leaves = jax.tree.leaves(value)
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    return not traced and getattr(value, "is_fully_addressable", True)


def _rounded_up(size):
    """The next of 8, 12, 16, 24, 32, 48, …: few sizes, of which none is half as much too large."""
    size = max(size, 8)
    step = (1 << (size - 1).bit_length()) // 4
    return -(-size // step) * step


def _padded(targets, lengths, examples):
    """`_rows` in a program, of the longest length that is known."""
    with checks.speaking_for(_CALLER) as speaking:
        targets = checks.labels("targets", targets, np.shape(targets))
        longest, given = targets.size, lengths
        lengths = checks.labels("target_lengths", lengths, (examples,))
        if _is_known(given):
            known = np.asarray(given)
            if known.sum() != longest:
                rule = f"hold the {known.sum():g} targets that `target_lengths` count"
                checks.fail(ValueError, "targets", rule, targets.shape)
            longest = int(known.max(initial=0))
        rule = "hold as many targets as `target_lengths` count"
        checks.require(jnp.sum(lengths) == targets.size, "targets", rule)
        lengths = speaking.checked(lengths)
    ends = jnp.cumsum(lengths, dtype=lengths.dtype)
    places = (ends - lengths)[:, None] + jnp.arange(longest, dtype=ends.dtype)[None]
    # A target that is missing is a bad one.
    return targets.at[places].get(mode="fill", fill_value=-1)
