"""The named workloads: what is computed, on which inputs, by jaxloss and by its peers.

jaxloss and torch share a function's name and arguments, so that one description serves both; the
peer in JAX is optax where it has the loss, and else the formula as one would write it down.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike

import jaxloss
from jaxloss import functional as F

Arrays = tuple[np.ndarray, ...]
Loss = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Workload:
    """A loss on inputs of one size, reduced to one number, with its gradients.

    A workload without `floats` is the loss alone, called without an outer `jax.jit`.
    """

    name: str
    group: str
    inputs: Callable[[np.random.Generator], Arrays]
    function: str  # In jaxloss.functional and torch.nn.functional.
    peer: Loss  # In JAX.
    peer_name: str = "plain"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    floats: tuple[int, ...] = (0,)  # The inputs to differentiate.
    ours: Loss | None = None  # Where it is not `function` alone.
    theirs: Callable[..., Any] | None = None  # The same in torch; its first argument is torch.
    fixed: bool = False  # Theirs is a kernel of torchaudio, which torch.compile leaves as it is.

    def jaxloss(self, *args: ArrayLike) -> jax.Array:
        if self.ours is not None:
            return self.ours(*args)
        return getattr(F, self.function)(*args, **self.options)

    def torch(self, torch: Any, *args: Any) -> Any:
        if self.theirs is not None:
            return self.theirs(torch, *args)
        args = tuple(x.long() if x.dtype == torch.int32 else x for x in args)
        return getattr(torch.nn.functional, self.function)(*args, **self.options)


# Inputs. ----------------------------------------------------------------------------------------


def numbers(count: int, *shape: int) -> Callable[[np.random.Generator], Arrays]:
    """Normally distributed arrays."""
    return lambda rng: tuple(_normal(rng, *shape) for _ in range(count))


def _normal(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def _unit(rng, *shape):
    return np.clip(rng.random(shape, np.float32), 0.01, 0.99)


def _signs(rng, *shape):
    return np.where(rng.random(shape) < 0.5, -1, 1).astype(np.float32)


def _distribution(rng, *shape):
    p = rng.random(shape, np.float32)
    return p / p.sum(1, keepdims=True)


def _log_softmax(x):
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def classes(*shape: int) -> Callable[[np.random.Generator], Arrays]:
    """Logits with the classes second, and class indices."""
    return lambda rng: (
        _normal(rng, *shape),
        rng.integers(0, shape[1], (shape[0], *shape[2:]), np.int32),
    )


def sequences(batch: int, frames: int, symbols: int, labels: int):
    """Logits (frames, batch, symbols), labels, and lengths that use all of both."""
    return lambda rng: (
        _normal(rng, frames, batch, symbols),
        rng.integers(1, symbols, (batch, labels), np.int32),
        np.full(batch, frames, np.int32),
        np.full(batch, labels, np.int32),
    )


def lattices(batch: int, frames: int, rows: int, symbols: int):
    """Logits of a transducer and its labels, without padding."""
    return lambda rng: (
        _normal(rng, batch, frames, rows, symbols),
        rng.integers(1, symbols, (batch, rows - 1), np.int32),
    )


def recordings(batch: int, frames: int, symbols: int, labels: int):
    """Log probabilities of each frame, and labels, without padding."""

    def inputs(rng):
        logits = _normal(rng, batch, frames, symbols)
        log_probs = logits - np.log(np.exp(logits).sum(2, keepdims=True))
        return log_probs, rng.integers(1, symbols, (batch, labels), np.int32)

    return inputs


def features(examples: int, width: int, count: int) -> Callable[[np.random.Generator], Arrays]:
    """Features, a kernel (classes, features), and class indices."""
    return lambda rng: (
        _normal(rng, examples, width),
        0.05 * _normal(rng, count, width),
        rng.integers(0, count, examples, np.int32),
    )


# Peers in JAX. ----------------------------------------------------------------------------------


def _mean(loss: Loss, **options: Any) -> Loss:
    return lambda *args: jnp.mean(loss(*args, **options))


def _smooth_l1(x, y):
    d = jnp.abs(x - y)
    return jnp.where(d < 1, 0.5 * d * d, d - 0.5)


def _bce(x, y):
    return -(y * jnp.maximum(jnp.log(x), -100.0) + (1 - y) * jnp.maximum(jnp.log1p(-x), -100.0))


def _gaussian(x, y, var):
    var = jnp.maximum(var, 1e-6)
    return 0.5 * (jnp.log(var) + (x - y) ** 2 / var)


def _kl(x, y):
    return jnp.where(y > 0, y * (jnp.log(jnp.where(y > 0, y, 1.0)) - x), 0.0)


def _nll(log_probs, labels):
    return -jnp.take_along_axis(log_probs, labels[:, None], 1)


def _cross_entropy(logits, labels):
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def _smoothed(logits, labels):
    labels = optax.losses.smooth_labels(jax.nn.one_hot(labels, logits.shape[1]), 0.1)
    return optax.losses.softmax_cross_entropy(logits, labels)


def _segmentation(logits, labels):
    return _cross_entropy(jnp.moveaxis(logits, 1, -1), labels)


def _multi_margin(scores, labels):
    own = jnp.take_along_axis(scores, labels[:, None], 1)
    hinge = jnp.maximum(0, 1 - own + scores)
    other = jnp.arange(scores.shape[1])[None] != labels[:, None]
    return jnp.sum(jnp.where(other, hinge, 0), 1) / scores.shape[1]


def _multilabel_soft_margin(x, y):
    return -jnp.mean(y * jax.nn.log_sigmoid(x) + (1 - y) * jax.nn.log_sigmoid(-x), 1)


def _several_labels(rng):
    labels = np.argsort(rng.random(_BATCH), 1)[:, :3].astype(np.int32)
    return _normal(rng, *_BATCH), np.pad(labels, [(0, 0), (0, 997)], constant_values=-1)


def _multilabel_margin(scores, labels):
    # For labels at the front, as all of torch's are; at most three as here.
    labels = labels[:, :3]
    own = jnp.take_along_axis(scores, labels, 1)
    is_own = jnp.any(labels[:, :, None] == jnp.arange(scores.shape[1])[None, None], 1)
    hinges = jnp.maximum(0, 1 - own[:, :, None] + scores[:, None, :])
    return jnp.sum(jnp.where(is_own[:, None], 0, hinges), (1, 2)) / scores.shape[1]


def _total(x, *others):
    return x.sum()


def _cosine(x1, x2, y):
    cosine = optax.losses.cosine_similarity(x1, x2, epsilon=1e-8)
    return jnp.where(y > 0, 1 - cosine, jnp.maximum(cosine, 0))


def _distance(x1, x2):
    return jnp.linalg.norm(x1 - x2 + 1e-6, axis=1)


def _triplet(anchor, positive, negative):
    return jnp.maximum(_distance(anchor, positive) - _distance(anchor, negative) + 1, 0)


def _hinge_embedding(x, y):
    return jnp.where(y > 0, x, jnp.maximum(1 - x, 0))


def _optax_ctc(logits, labels, logit_lengths, label_lengths):
    logits = jnp.moveaxis(logits, 0, 1)
    paddings = (jnp.zeros(x.shape[:2], jnp.float32) for x in (logits, labels))
    logit_paddings, label_paddings = paddings
    return optax.losses.ctc_loss(logits, logit_paddings, labels, label_paddings).sum()


def _ctc(logits, labels, logit_lengths, label_lengths):
    logits = jnp.moveaxis(logits, 0, 1)
    paddings = (jnp.zeros(x.shape[:2], jnp.float32) for x in (logits, labels))
    logit_paddings, label_paddings = paddings
    return jaxloss.ctc_loss(logits, logit_paddings, labels, label_paddings).sum()


def _functional_ctc(logits, *labels_and_lengths):
    return F.ctc_loss(jax.nn.log_softmax(logits), *labels_and_lengths, reduction="sum")


def _torch_ctc(torch, logits, *labels_and_lengths):
    labels_and_lengths = (x.long() for x in labels_and_lengths)
    log_probs = logits.log_softmax(-1)
    return torch.nn.functional.ctc_loss(log_probs, *labels_and_lengths, reduction="sum")


def _rnnt(logits, labels):
    paddings = (jnp.zeros(shape, bool) for shape in (logits.shape[:2], labels.shape))
    logit_paddings, label_paddings = paddings
    return jaxloss.rnnt_loss(logits, logit_paddings, labels, label_paddings).sum()


def _plain_rnnt(logits, labels):
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


def _torch_rnnt(torch, logits, labels):
    audio = importlib.import_module("torchaudio")
    batch, frames, rows, _ = logits.shape
    lengths = (torch.full((batch,), n, dtype=torch.int32) for n in (frames, rows - 1))
    return audio.functional.rnnt_loss(logits, labels, *lengths, blank=0, reduction="sum")


def _score(log_probs, labels):
    return F.forced_align(log_probs, labels)[1].sum()


def _plain_score(log_probs, labels):
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


def _torch_score(torch, log_probs, labels):
    align = importlib.import_module("torchaudio").functional.forced_align
    pairs = zip(log_probs.split(1), labels.split(1), strict=True)  # It takes one at a time.
    return sum(align(*pair)[1].sum() for pair in pairs)


def _linear(inputs, kernel, labels):
    return _cross_entropy(inputs @ kernel.T, labels).mean()


def _linear_each(inputs, kernel, labels):
    return jaxloss.linear_softmax_cross_entropy(inputs, kernel, labels).mean()


def _torch_linear(torch, inputs, kernel, labels):
    options = torch.nn.LinearCrossEntropyOptions()
    functional = torch.nn.functional
    return functional.linear_cross_entropy(inputs, kernel, labels.long(), options=options)


_CUTOFFS = (2000, 10000, 32000)


def _adaptive_features(rng):
    width = 256
    tail = []
    for i, (first, end) in enumerate(itertools.pairwise(_CUTOFFS), start=1):
        size = width // 4**i
        tail += [_normal(rng, size, width), _normal(rng, end - first, size)]
    weights = [_normal(rng, _CUTOFFS[0] + len(tail) // 2, width), *tail]
    # Words' frequencies fall as their rank grows.
    labels = (_CUTOFFS[-1] ** rng.random(2048) - 1).astype(np.int32)
    return _normal(rng, 2048, width), labels, *(0.05 * w for w in weights)


def _adaptive(inputs, labels, head, *tail):
    tail = tuple(zip(tail[::2], tail[1::2], strict=True))
    return jaxloss.adaptive_softmax_cross_entropy(inputs, head, tail, labels).mean()


def _plain_adaptive(inputs, labels, head, *tail):
    log_probs = jax.nn.log_softmax(inputs @ head.T)
    parts = [log_probs[:, : _CUTOFFS[0]]]
    for i, (projection, weights) in enumerate(zip(tail[::2], tail[1::2], strict=True)):
        within = jax.nn.log_softmax(inputs @ projection.T @ weights.T)
        parts.append(log_probs[:, _CUTOFFS[0] + i, None] + within)
    return _nll(jnp.concatenate(parts, 1), labels).mean()


def _torch_adaptive(torch, inputs, labels, head, *tail):
    module = torch.nn.AdaptiveLogSoftmaxWithLoss(inputs.shape[1], _CUTOFFS[-1], _CUTOFFS[:-1])
    names = [name for name, _ in module.named_parameters()]
    parameters = dict(zip(names, (head, *tail), strict=True))
    return torch.func.functional_call(module, parameters, (inputs, labels.long())).loss


# The workloads. ---------------------------------------------------------------------------------

_IMAGE = 2048, 2048  # 4 million elements
_BATCH = 4096, 1000
_EMBEDDING = 16384, 256
_RNNT_SHAPES = (8, 200, 41, 128), (4, 500, 101, 1024)
_RECORDINGS = 64, 1000, 32, 100
_CTC_SHAPES = (32, 150, 32, 30), (16, 1000, 128, 100), (8, 1500, 5000, 60), (64, 32, 37, 20)


def _elementwise(function, inputs, loss, peer_name="plain", floats=(0,), **options):
    peer = _mean(loss)
    return Workload(function, "elementwise", inputs, function, peer, peer_name, options, floats)


def _classification(name, inputs, loss, peer_name="plain", function="cross_entropy", **options):
    return Workload(name, "classes", inputs, function, _mean(loss), peer_name, options)


WORKLOADS = [
    _elementwise("l1_loss", numbers(2, *_IMAGE), lambda x, y: jnp.abs(x - y)),
    _elementwise("mse_loss", numbers(2, *_IMAGE), lambda x, y: (x - y) ** 2),
    _elementwise("smooth_l1_loss", numbers(2, *_IMAGE), _smooth_l1),
    _elementwise("huber_loss", numbers(2, *_IMAGE), optax.losses.huber_loss, "optax"),
    _elementwise(
        "poisson_nll_loss",
        lambda rng: (_normal(rng, *_IMAGE), rng.poisson(3, _IMAGE).astype(np.float32)),
        lambda x, y: jnp.exp(x) - y * x,
    ),
    _elementwise(
        "gaussian_nll_loss",
        lambda rng: (*numbers(2, *_IMAGE)(rng), _unit(rng, *_IMAGE)),
        _gaussian,
        floats=(0, 2),
    ),
    _elementwise(
        "kl_div",
        lambda rng: (_log_softmax(_normal(rng, *_IMAGE)), _distribution(rng, *_IMAGE)),
        _kl,
    ),
    _elementwise(
        "binary_cross_entropy", lambda rng: (_unit(rng, *_IMAGE), _unit(rng, *_IMAGE)), _bce
    ),
    _elementwise(
        "binary_cross_entropy_with_logits",
        lambda rng: (_normal(rng, *_IMAGE), _unit(rng, *_IMAGE)),
        optax.losses.sigmoid_binary_cross_entropy,
        "optax",
    ),
    _elementwise(
        "soft_margin_loss",
        lambda rng: (_normal(rng, *_IMAGE), _signs(rng, *_IMAGE)),
        lambda x, y: jax.nn.softplus(-y * x),
    ),
    _elementwise(
        "hinge_embedding_loss",
        lambda rng: (_normal(rng, *_IMAGE), _signs(rng, *_IMAGE)),
        _hinge_embedding,
    ),
    _elementwise(
        "margin_ranking_loss",
        lambda rng: (*numbers(2, *_IMAGE)(rng), _signs(rng, *_IMAGE)),
        lambda x1, x2, y: jnp.maximum(-y * (x1 - x2), 0),
        floats=(0, 1),
    ),
    _classification("cross_entropy", classes(*_BATCH), _cross_entropy, "optax"),
    _classification(
        "cross_entropy, smoothed", classes(*_BATCH), _smoothed, "optax", label_smoothing=0.1
    ),
    _classification(
        "cross_entropy, probabilities",
        lambda rng: (_normal(rng, *_BATCH), _distribution(rng, *_BATCH)),
        optax.losses.softmax_cross_entropy,
        "optax",
    ),
    _classification("cross_entropy, vocabulary", classes(512, 50257), _cross_entropy, "optax"),
    _classification(
        "cross_entropy, segmentation", classes(8, 21, 256, 256), _segmentation, "optax"
    ),
    _classification(
        "nll_loss",
        lambda rng: (_log_softmax(_normal(rng, *_BATCH)), rng.integers(0, 1000, 4096, np.int32)),
        _nll,
        function="nll_loss",
    ),
    _classification(
        "multi_margin_loss", classes(*_BATCH), _multi_margin, function="multi_margin_loss"
    ),
    _classification(
        "multilabel_soft_margin_loss",
        lambda rng: (_normal(rng, *_BATCH), _unit(rng, *_BATCH).round()),
        _multilabel_soft_margin,
        function="multilabel_soft_margin_loss",
    ),
    _classification(
        "multilabel_margin_loss",
        _several_labels,
        _multilabel_margin,
        function="multilabel_margin_loss",
    ),
    Workload(
        "cosine_embedding_loss",
        "embeddings",
        lambda rng: (*numbers(2, *_EMBEDDING)(rng), _signs(rng, _EMBEDDING[0])),
        "cosine_embedding_loss",
        _mean(_cosine),
        "optax",
        floats=(0, 1),
    ),
    Workload(
        "triplet_margin_loss",
        "embeddings",
        numbers(3, *_EMBEDDING),
        "triplet_margin_loss",
        _mean(_triplet),
        floats=(0, 1, 2),
    ),
    *(
        Workload(
            f"ctc_loss, {door} {'x'.join(map(str, shape))}",
            "ctc",
            sequences(*shape),
            "ctc_loss",
            _optax_ctc,
            "optax",
            ours=loss,
            theirs=_torch_ctc,
        )
        for shape in _CTC_SHAPES
        for door, loss in {"core": _ctc, "functional": _functional_ctc}.items()
    ),
    *(
        Workload(
            name,
            "linear",
            features(2048, 512, 32000),
            "linear_cross_entropy",
            _linear,
            "optax, all logits",
            floats=(0, 1),
            ours=ours,
            theirs=_torch_linear,
        )
        for name, ours in {
            "linear_cross_entropy": None,
            "linear_softmax_cross_entropy": _linear_each,
        }.items()
    ),
    Workload(
        "adaptive softmax",
        "linear",
        _adaptive_features,
        "",
        _plain_adaptive,
        floats=(0, 2, 3, 4, 5, 6),
        ours=_adaptive,
        theirs=_torch_adaptive,
    ),
    *(
        Workload(
            f"rnnt_loss {'x'.join(map(str, shape))}",
            "rnnt",
            lattices(*shape),
            "rnnt_loss",
            _plain_rnnt,
            ours=_rnnt,
            theirs=_torch_rnnt,
            fixed=True,
        )
        for shape in _RNNT_SHAPES
    ),
    Workload(
        f"forced_align {'x'.join(map(str, _RECORDINGS))}",
        "alignment",
        recordings(*_RECORDINGS),
        "forced_align",
        _plain_score,
        floats=(),
        ours=_score,
        theirs=_torch_score,
        fixed=True,
    ),
    # Small enough that only the way to the compiled program and back takes time, and that XLA does
    # not hand it to another thread.
    *(
        Workload(f"{function}, a call", "calls", inputs, function, _total, "sum()", floats=())
        for function, inputs in {
            "mse_loss": numbers(2, 4, 4),
            "cross_entropy": classes(4, 4),
            "triplet_margin_loss": numbers(3, 4, 4),
        }.items()
    ),
]
