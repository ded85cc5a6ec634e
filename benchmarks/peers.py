"""What jaxloss is compared with, and how it is called itself where that takes more than a name.

In JAX the peer is optax where it has the loss, and else the formula as one would write it down.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

import jaxloss
from jaxloss import functional as F

Loss = Callable[..., jax.Array]


def mean(loss: Loss, **options: Any) -> Loss:
    return lambda *args: jnp.mean(loss(*args, **options))


def smooth_l1(x, y):
    d = jnp.abs(x - y)
    return jnp.where(d < 1, 0.5 * d * d, d - 0.5)


def bce(x, y):
    return -(y * jnp.maximum(jnp.log(x), -100.0) + (1 - y) * jnp.maximum(jnp.log1p(-x), -100.0))


def gaussian(x, y, var):
    var = jnp.maximum(var, 1e-6)
    return 0.5 * (jnp.log(var) + (x - y) ** 2 / var)


def kl(x, y):
    return jnp.where(y > 0, y * (jnp.log(jnp.where(y > 0, y, 1.0)) - x), 0.0)


def nll(log_probs, labels):
    return -jnp.take_along_axis(log_probs, labels[:, None], 1)


def cross_entropy(logits, labels):
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def smoothed(logits, labels):
    labels = optax.losses.smooth_labels(jax.nn.one_hot(labels, logits.shape[1]), 0.1)
    return optax.losses.softmax_cross_entropy(logits, labels)


def segmentation(logits, labels):
    return cross_entropy(jnp.moveaxis(logits, 1, -1), labels)


def multi_margin(scores, labels):
    own = jnp.take_along_axis(scores, labels[:, None], 1)
    hinge = jnp.maximum(0, 1 - own + scores)
    other = jnp.arange(scores.shape[1])[None] != labels[:, None]
    return jnp.sum(jnp.where(other, hinge, 0), 1) / scores.shape[1]


def multilabel_soft_margin(x, y):
    return -jnp.mean(y * jax.nn.log_sigmoid(x) + (1 - y) * jax.nn.log_sigmoid(-x), 1)


def multilabel_margin(scores, labels):
    # For labels at the front, as all of torch's are; at most three as here.
    labels = labels[:, :3]
    own = jnp.take_along_axis(scores, labels, 1)
    is_own = jnp.any(labels[:, :, None] == jnp.arange(scores.shape[1])[None, None], 1)
    hinges = jnp.maximum(0, 1 - own[:, :, None] + scores[:, None, :])
    return jnp.sum(jnp.where(is_own[:, None], 0, hinges), (1, 2)) / scores.shape[1]


def total(x, *others):
    return x.sum()


def cosine(x1, x2, y):
    cosine = optax.losses.cosine_similarity(x1, x2, epsilon=1e-8)
    return jnp.where(y > 0, 1 - cosine, jnp.maximum(cosine, 0))


def distance(x1, x2):
    return jnp.linalg.norm(x1 - x2 + 1e-6, axis=1)


def triplet(anchor, positive, negative):
    return jnp.maximum(distance(anchor, positive) - distance(anchor, negative) + 1, 0)


def hinge_embedding(x, y):
    return jnp.where(y > 0, x, jnp.maximum(1 - x, 0))


def optax_ctc(logits, labels, logit_lengths, label_lengths):
    logits = jnp.moveaxis(logits, 0, 1)
    paddings = (jnp.zeros(x.shape[:2], jnp.float32) for x in (logits, labels))
    logit_paddings, label_paddings = paddings
    return optax.losses.ctc_loss(logits, logit_paddings, labels, label_paddings).sum()


def ctc(logits, labels, logit_lengths, label_lengths):
    logits = jnp.moveaxis(logits, 0, 1)
    paddings = (jnp.zeros(x.shape[:2], jnp.float32) for x in (logits, labels))
    logit_paddings, label_paddings = paddings
    return jaxloss.ctc_loss(logits, logit_paddings, labels, label_paddings).sum()


def functional_ctc(logits, *labels_and_lengths):
    return F.ctc_loss(jax.nn.log_softmax(logits), *labels_and_lengths, reduction="sum")


def torch_ctc(torch, logits, *labels_and_lengths):
    labels_and_lengths = (x.long() for x in labels_and_lengths)
    log_probs = logits.log_softmax(-1)
    return torch.nn.functional.ctc_loss(log_probs, *labels_and_lengths, reduction="sum")


def cudnn_ctc(torch, logits, labels, *lengths):
    """The kernel of cuDNN, which wants labels and lengths on the host."""
    labels, lengths = labels.flatten().cpu(), [x.tolist() for x in lengths]

    def loss(logits, *_):
        log_probs = logits.log_softmax(-1)
        return torch.nn.functional.ctc_loss(log_probs, labels, *lengths, reduction="sum")

    return loss


def rnnt(logits, labels):
    paddings = (jnp.zeros(shape, bool) for shape in (logits.shape[:2], labels.shape))
    logit_paddings, label_paddings = paddings
    return jaxloss.rnnt_loss(logits, logit_paddings, labels, label_paddings).sum()


def plain_rnnt(logits, labels):
    """Graves' α by anti-diagonals n = t + u in logarithms, of sequences without padding."""
    batch, frames, rows, symbols = logits.shape
    log_probs = jax.nn.log_softmax(logits)
    blank = log_probs[..., 0]
    # Of the last row there is none. A gather takes 51 GB on a TPU.
    following = jax.nn.one_hot(jnp.pad(labels, ((0, 0), (0, 1)), constant_values=-1), symbols)
    label = jnp.sum(log_probs * following[:, None], -1)
    label = jnp.where(jnp.arange(rows)[None, None] < rows - 1, label, -1e30)

    def by_diagonal(x):
        # Rows of time, one for each u, that become shorter by one begin later by one each.
        x = jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, rows)), constant_values=-1e30)
        x = x.reshape(batch, -1)[:, : rows * (frames + rows - 1)]
        return jnp.moveaxis(x.reshape(batch, rows, -1), 2, 0)[:-1]

    def step(alpha, factors):
        by_blank, by_label = (alpha + factor for factor in factors)
        by_label = jnp.pad(by_label[:, :-1], ((0, 0), (1, 0)), constant_values=-1e30)
        return jnp.logaddexp(by_blank, by_label), None

    start = jnp.full((batch, rows), -1e30, logits.dtype).at[:, 0].set(0)
    alpha, _ = lax.scan(step, start, (by_diagonal(blank), by_diagonal(label)))
    return -jnp.sum(alpha[:, -1] + blank[:, -1, -1])


def torch_rnnt(torch, logits, labels):
    audio = importlib.import_module("torchaudio")
    batch, frames, rows, _ = logits.shape
    lengths = (
        torch.full((batch,), count, dtype=torch.int32, device=logits.device)
        for count in (frames, rows - 1)
    )
    return audio.functional.rnnt_loss(logits, labels, *lengths, blank=0, reduction="sum")


def score(log_probs, labels):
    return F.forced_align(log_probs, labels)[1].sum()


def plain_score(log_probs, labels):
    """Viterbi in sums of logarithms, of sequences without padding."""
    states = jnp.pad(labels[..., None], ((0, 0), (0, 0), (1, 0))).reshape(len(labels), -1)
    states = jnp.pad(states, ((0, 0), (0, 1)))
    may_skip = jnp.pad(states[:, 2:] != states[:, :-2], ((0, 0), (2, 0)))
    count = states.shape[1]
    places = jnp.broadcast_to(states[:, None], (*log_probs.shape[:2], count))
    of_states = jnp.take_along_axis(log_probs, places, 2)

    def step(best, scores):
        before = jnp.pad(best, ((0, 0), (2, 0)), constant_values=-1e30)
        skipped = jnp.where(may_skip, before[:, :count], -1e30)
        ways = jnp.stack([best, before[:, 1 : count + 1], skipped])
        return jnp.max(ways, 0) + scores, jnp.argmax(ways, 0)

    start = jnp.where(jnp.arange(count)[None] == 0, 0, -1e30) + jnp.zeros_like(of_states[:, 0])
    best, came = lax.scan(step, start, jnp.moveaxis(of_states, 1, 0))
    last = jnp.where(best[:, -2:-1] > best[:, -1:], count - 2, count - 1)

    def step_back(state, came):
        return state - jnp.take_along_axis(came, state, 1), state

    _, path = lax.scan(step_back, last, came, reverse=True)
    symbols = jnp.take_along_axis(states, jnp.moveaxis(path[..., 0], 0, 1), 1)
    return jnp.take_along_axis(log_probs, symbols[..., None], 2).sum()


def torch_score(torch, log_probs, labels):
    align = importlib.import_module("torchaudio").functional.forced_align
    pairs = zip(log_probs.split(1), labels.split(1), strict=True)  # It takes one at a time.
    return sum(align(*pair)[1].sum() for pair in pairs)


def linear(inputs, kernel, labels):
    return cross_entropy(inputs @ kernel.T, labels).mean()


def linear_each(inputs, kernel, labels):
    return jaxloss.linear_softmax_cross_entropy(inputs, kernel, labels).mean()


def torch_linear(torch, inputs, kernel, labels):
    functional, labels = torch.nn.functional, labels.long()
    if not hasattr(functional, "linear_cross_entropy"):  # It came with torch 2.13.
        return functional.cross_entropy(inputs @ kernel.T, labels)
    options = torch.nn.LinearCrossEntropyOptions()
    return functional.linear_cross_entropy(inputs, kernel, labels, options=options)


CUTOFFS = (2000, 10000, 32000)


def adaptive(inputs, labels, head, *tail):
    tail = tuple(zip(tail[::2], tail[1::2], strict=True))
    return jaxloss.adaptive_softmax_cross_entropy(inputs, head, tail, labels).mean()


def plain_adaptive(inputs, labels, head, *tail):
    log_probs = jax.nn.log_softmax(inputs @ head.T)
    parts = [log_probs[:, : CUTOFFS[0]]]
    for i, (projection, weights) in enumerate(zip(tail[::2], tail[1::2], strict=True)):
        within = jax.nn.log_softmax(inputs @ projection.T @ weights.T)
        parts.append(log_probs[:, CUTOFFS[0] + i, None] + within)
    return nll(jnp.concatenate(parts, 1), labels).mean()


def torch_adaptive(torch, inputs, labels, head, *tail):
    module = torch.nn.AdaptiveLogSoftmaxWithLoss(inputs.shape[1], CUTOFFS[-1], CUTOFFS[:-1])
    names = [name for name, _ in module.named_parameters()]
    parameters = dict(zip(names, (head, *tail), strict=True))
    return torch.func.functional_call(module, parameters, (inputs, labels.long())).loss
