"""The losses once more, from their formulas: float64, plain loops, one function per core loss."""

from __future__ import annotations

import math

import numpy as np

INF = math.inf
NAN = math.nan


def _f(x):
    return np.asarray(x, np.float64)


def _elementwise(f, *arrays):
    """f of every tuple of elements; the arrays broadcast to the first."""
    shape = np.shape(arrays[0])
    arrays = [np.broadcast_to(_f(a), shape) for a in arrays]
    out = np.empty(shape)
    for i in np.ndindex(shape):
        out[i] = f(*(float(a[i]) for a in arrays))
    return out


def _rows(f, batch_shape, *arrays):
    """f of every example's row of each array."""
    out = np.empty(batch_shape)
    for i in np.ndindex(batch_shape):
        out[i] = f(*(a[i] for a in arrays))
    return out


def _times(weight, x):
    return 0.0 if weight == 0 else weight * x


def _log(x):
    return -INF if x == 0 else math.log(x)


def _exp(x):
    return math.exp(x) if x < 709 else INF


def absolute_error(predictions, targets):
    return _elementwise(lambda x, y: abs(x - y), predictions, targets)


def squared_error(predictions, targets):
    return _elementwise(lambda x, y: (x - y) ** 2, predictions, targets)


def huber_loss(predictions, targets, *, delta=1.0):
    def loss(x, y):
        e = abs(x - y)
        return e**2 / 2 if e < delta else delta * (e - delta / 2)

    return _elementwise(loss, predictions, targets)


def smooth_l1_loss(predictions, targets, *, beta=1.0):
    def loss(x, y):
        e = abs(x - y)
        return e**2 / (2 * beta) if e < beta else e - beta / 2

    return _elementwise(loss, predictions, targets)


def negative_log_likelihood(log_probs, labels, *, where=None):
    log_probs, labels = _f(log_probs), np.asarray(labels)
    keep = np.broadcast_to(True if where is None else where, log_probs.shape)

    def loss(row, label, kept):
        if not kept.any():
            return 0.0
        if not 0 <= label < len(row) or not kept[label]:
            return NAN
        return -row[label]

    return _rows(loss, labels.shape, log_probs, labels, keep)


def poisson_nll_loss(predictions, targets, *, log_input=True, full=False, eps=1e-8):
    def loss(x, y):
        value = _exp(x) - _times(y, x) if log_input else x - _times(y, _log(x + eps))
        if full and y > 1:
            value += y * math.log(y) - y + math.log(2 * math.pi * y) / 2
        return value

    return _elementwise(loss, predictions, targets)


def gaussian_nll_loss(predictions, targets, variances, *, full=False, eps=1e-6):
    def loss(x, y, v):
        v = max(v, eps)
        value = (math.log(v) + (x - y) ** 2 / v) / 2
        return value + math.log(2 * math.pi) / 2 if full else value

    return _elementwise(loss, predictions, targets, variances)


def _summed(term, predictions, targets, axis, where):
    keep = np.broadcast_to(True if where is None else where, np.shape(predictions))
    terms = _elementwise(
        lambda x, t, k: term(x, t) if k else 0.0, predictions, targets, keep.astype(float)
    )
    return terms if axis == () else terms.sum(axis)


def kl_divergence(log_predictions, targets, *, axis=-1, where=None):
    def term(x, t):
        return 0.0 if t == 0 else t * (math.log(t) - x)

    return _summed(term, log_predictions, targets, axis, where)


def kl_divergence_with_log_targets(log_predictions, log_targets, *, axis=-1, where=None):
    def term(x, t):
        return 0.0 if t == -INF else math.exp(t) * (t - x)

    return _summed(term, log_predictions, log_targets, axis, where)


def _cross_entropy(logits, target_rows, where, class_weights, label_smoothing, z_loss):
    logits = _f(logits)
    classes = logits.shape[-1]
    keep = np.broadcast_to(True if where is None else where, logits.shape)
    weights = np.ones(classes) if class_weights is None else _f(class_weights)

    def loss(row, targets, kept):
        present = [c for c in range(classes) if kept[c]]
        if not present:
            return 0.0
        if targets is None:
            return NAN
        top = max(present, key=lambda c: row[c])
        others = [math.exp(row[c] - row[top]) for c in present if c != top]
        log_sum = math.log1p(math.fsum(others))
        terms = []
        for c in present:
            target = (1 - label_smoothing) * targets[c] + label_smoothing / len(present)
            terms.append(_times(weights[c] * target, (row[top] - row[c]) + log_sum))
        if any(math.isnan(t) for t in terms):
            return NAN
        return math.fsum(terms) + z_loss * (row[top] + log_sum) ** 2

    out = np.empty(logits.shape[:-1])
    for i in np.ndindex(out.shape):
        out[i] = loss(logits[i], target_rows(i, keep[i]), keep[i])
    return out


def softmax_cross_entropy_with_integer_labels(
    logits, labels, *, where=None, class_weights=None, label_smoothing=0.0, z_loss=0.0
):
    labels = np.asarray(labels)

    def one_hot(i, kept):
        label = int(labels[i])
        if not 0 <= label < len(kept) or not kept[label]:
            return None
        return [float(c == label) for c in range(len(kept))]

    return _cross_entropy(logits, one_hot, where, class_weights, label_smoothing, z_loss)


def softmax_cross_entropy(
    logits, labels, *, where=None, class_weights=None, label_smoothing=0.0, z_loss=0.0
):
    labels = _f(labels)
    return _cross_entropy(
        logits, lambda i, _: labels[i], where, class_weights, label_smoothing, z_loss
    )


def _softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def sigmoid_binary_cross_entropy(logits, labels, *, pos_weight=None):
    weight = 1.0 if pos_weight is None else pos_weight

    def loss(x, y, w):
        return _times(w * y, _softplus(-x)) + _times(1 - y, _softplus(x))

    return _elementwise(loss, logits, labels, weight)


def binary_cross_entropy(probabilities, labels):
    def loss(p, y):
        log_p = max(_log(p), -100.0)
        log_q = -100.0 if p == 1 else max(math.log1p(-p), -100.0)
        return -(y * log_p + (1 - y) * log_q)

    return _elementwise(loss, probabilities, labels)


def soft_margin_loss(scores, targets):
    return _elementwise(lambda x, y: _softplus(-y * x), scores, targets)


def multilabel_soft_margin_loss(logits, labels, *, class_weights=None, where=None):
    logits = _f(logits)
    keep = np.broadcast_to(True if where is None else where, logits.shape)
    weights = np.ones(logits.shape[-1]) if class_weights is None else _f(class_weights)

    def loss(row, targets, kept):
        terms = [
            _times(w, _times(y, _softplus(-x)) + _times(1 - y, _softplus(x)))
            for x, y, w, k in zip(row, targets, weights, kept, strict=True)
            if k
        ]
        return math.fsum(terms) / len(terms) if terms else 0.0

    return _rows(loss, logits.shape[:-1], logits, _f(labels), keep)


def hinge_embedding_loss(distances, targets, *, margin=1.0):
    def loss(x, y):
        return (x if y != -1 else 0.0) + (max(0.0, margin - x) if y != 1 else 0.0)

    return _elementwise(loss, distances, targets)


def margin_ranking_loss(scores1, scores2, targets, *, margin=0.0):
    def loss(x1, x2, y):
        return max(0.0, -y * (x1 - x2) + margin)

    return _elementwise(loss, scores1, scores2, targets)


def multi_margin_loss(scores, labels, *, p=1, margin=1.0, class_weights=None):
    scores, labels = _f(scores), np.asarray(labels)
    classes = scores.shape[-1]
    weights = np.ones(classes) if class_weights is None else _f(class_weights)

    def loss(row, label):
        if not 0 <= label < classes:
            return NAN
        short = [max(0.0, margin - row[label] + row[c]) for c in range(classes) if c != label]
        return weights[label] * math.fsum(s**p for s in short) / classes

    return _rows(loss, labels.shape, scores, labels)


def multilabel_margin_loss(scores, labels):
    scores, labels = _f(scores), np.asarray(labels)
    classes = scores.shape[-1]

    def loss(row, targets):
        read = []
        for target in targets:
            if target < 0:
                break
            read.append(int(target))
        if any(target >= classes for target in read):
            return NAN
        others = [c for c in range(classes) if c not in read]
        short = [max(0.0, 1 - (row[k] - row[c])) for k in read for c in others]
        return math.fsum(short) / classes

    return _rows(loss, scores.shape[:-1], scores, labels)


def _norm(x, p):
    x = [abs(float(v)) for v in x]
    if p == 0:
        return float(sum(v != 0 for v in x))
    if p == INF:
        return max(x)
    if p == -INF:
        return min(x)
    scale = max(x) if p > 0 else min(x)
    if scale == 0:
        return 0.0
    return scale * math.fsum((v / scale) ** p for v in x) ** (1 / p)


def _cosine(x1, x2, eps=0.0):
    lengths = max(_norm(x1, 2), eps), max(_norm(x2, 2), eps)
    if 0 in lengths:
        return 0.0
    return math.fsum((a / lengths[0]) * (b / lengths[1]) for a, b in zip(x1, x2, strict=True))


def cosine_similarity(x1, x2, *, eps=0.0):
    x1, x2 = _f(x1), _f(x2)
    return _rows(lambda a, b: _cosine(a, b, eps), x1.shape[:-1], x1, x2)


def cosine_embedding_loss(x1, x2, targets, *, margin=0.0):
    x1, x2 = _f(x1), _f(x2)

    def loss(a, b, y):
        cosine = _cosine(a, b)
        return 1 - cosine if y == 1 else max(0.0, cosine - margin) if y == -1 else 0.0

    return _rows(loss, x1.shape[:-1], x1, x2, _f(targets))


def pairwise_distance(x1, x2, *, p=2.0, eps=1e-6):
    x1, x2 = _f(x1), _f(x2)
    return _rows(lambda a, b: _norm(a - b + eps, p), x1.shape[:-1], x1, x2)


def triplet_margin_loss(anchors, positives, negatives, *, margin=1.0, p=2.0, eps=1e-6, swap=False):
    def distance(x1, x2):
        return pairwise_distance(x1, x2, p=p, eps=eps)

    return triplet_margin_with_distance_loss(
        anchors, positives, negatives, distance_function=distance, margin=margin, swap=swap
    )


def triplet_margin_with_distance_loss(
    anchors, positives, negatives, *, distance_function=None, margin=1.0, swap=False
):
    distance = distance_function or pairwise_distance
    near, far = _f(distance(anchors, positives)), _f(distance(anchors, negatives))
    if swap:
        far = np.minimum(far, _f(distance(positives, negatives)))
    return _elementwise(lambda n, f: max(0.0, n - f + margin), near, far)


def reduce(losses, reduction="mean", *, weights=None, where=None, normalizer=None):
    losses = _f(losses)
    weights = np.broadcast_to(1.0 if weights is None else _f(weights), losses.shape)
    keep = np.broadcast_to(True if where is None else where, losses.shape)
    weighted, mass = np.zeros(losses.shape), 0.0
    for i in np.ndindex(losses.shape):
        if keep[i]:
            weighted[i] = _times(weights[i], losses[i])
            mass += weights[i]
    if reduction == "none":
        return weighted
    total = math.fsum(weighted.ravel())
    if reduction == "sum":
        return total
    count = mass if reduction == "mean" else losses.shape[0]
    count = count if normalizer is None else normalizer
    return total / count if count else 0.0
