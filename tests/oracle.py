"""Independent oracles: every core loss from its formula, in float64, with plain loops."""

from __future__ import annotations

import itertools
import math

import numpy as np

INF, NAN = math.inf, math.nan

# The arithmetic is on Python's floats, where inf - inf is NaN without numpy's warning.


def _elements(f, *arrays):
    """f of each element of the first array; the others broadcast to it."""
    shape = np.shape(arrays[0])
    arrays = [np.broadcast_to(np.asarray(a, np.float64), shape) for a in arrays]
    out = np.empty(shape)
    for i in np.ndindex(shape):
        out[i] = f(*(a[i].item() for a in arrays))
    return out


def _examples(f, rows, *others, where=None):
    """f of each example, given lists without what `where` excludes; 0 where nothing is left."""
    rows = np.asarray(rows, np.float64)
    arrays = [rows, *map(_numbers, others)]
    kept = _mask(where, rows)
    out = np.zeros(rows.shape[:-1])
    for i in np.ndindex(out.shape):
        lists = [a[i][kept[i]] if a.ndim == rows.ndim else a[i] for a in arrays]
        if kept[i].any():
            out[i] = f(*(a.tolist() for a in lists))
    return out


def _numbers(a):
    a = np.asarray(a)
    return a if np.issubdtype(a.dtype, np.integer) else a.astype(np.float64)


def _mask(where, like):
    return np.broadcast_to(np.asarray(True if where is None else where, bool), np.shape(like))


def _each_class(values, like):
    """One value per class, repeated for every example."""
    return np.broadcast_to(1.0 if values is None else np.asarray(values), np.shape(like))


def _indices(like):
    return _each_class(range(np.shape(like)[-1]), like)


def _times(a, b):
    """a * b with 0 * inf = 0; NaN stays NaN."""
    return 0.0 if 0 in (a, b) and INF in (abs(a), abs(b)) else a * b


def _sum(terms):
    terms = list(terms)
    try:
        return math.fsum(terms)
    except (OverflowError, ValueError):  # A sum beyond float64, or inf - inf.
        return float(sum(terms))


def _or_inf(f, *args):
    try:
        return f(*args)
    except OverflowError:
        return INF


def _log(x):
    return -INF if x == 0 else NAN if x < 0 else math.log(x)


def _log1p(x):
    return -INF if x == -1 else NAN if x < -1 else math.log1p(x)


def _clamp(x, low=0.0):
    """The larger of x and low; NaN stays NaN."""
    return low if x < low else x


def _softplus(x):
    return _clamp(x) + math.log1p(math.exp(-abs(x)))


def absolute_error(predictions, targets):
    return _elements(lambda x, t: abs(x - t), predictions, targets)


def squared_error(predictions, targets):
    return _elements(lambda x, t: (x - t) * (x - t), predictions, targets)


def huber_loss(predictions, targets, *, delta=1.0):
    def one(x, t):
        e = abs(x - t)
        return 0.5 * e * e if e < delta else delta * (e - 0.5 * delta)

    return _elements(one, predictions, targets)


def smooth_l1_loss(predictions, targets, *, beta=1.0):
    def one(x, t):
        e = abs(x - t)
        return 0.5 * e * e / beta if e < beta else e - 0.5 * beta

    return _elements(one, predictions, targets)


def negative_log_likelihood(log_probs, labels, *, where=None):
    def one(x, y, classes):
        return -x[classes.index(y)] if y in classes else NAN

    return _examples(one, log_probs, labels, _indices(log_probs), where=where)


def poisson_nll_loss(predictions, targets, *, log_input=True, full=False, eps=1e-8):
    def one(x, t):
        loss = _or_inf(math.exp, x) - _times(t, x) if log_input else x - _times(t, _log(x + eps))
        if full and t > 1:
            loss += t * math.log(t) - t + 0.5 * math.log(2 * math.pi * t)
        return loss

    return _elements(one, predictions, targets)


def gaussian_nll_loss(predictions, targets, variances, *, full=False, eps=1e-6):
    def one(x, t, var):
        v = _clamp(var, eps)
        loss = 0.5 * (_log(v) + (x - t) * (x - t) / v)
        return loss + 0.5 * math.log(2 * math.pi) if full else loss

    return _elements(one, predictions, targets, variances)


def _divergence(term, log_predictions, targets, axis, where):
    if axis == ():  # The terms themselves: each is a sum over a class axis of its own.
        arrays = [log_predictions, targets, _mask(where, log_predictions)]
        x, t, kept = (np.asarray(a)[..., None] for a in arrays)
        return _divergence(term, x, t, -1, kept)
    return _examples(lambda x, t: _sum(map(term, x, t)), log_predictions, targets, where=where)


def kl_divergence(log_predictions, targets, *, axis=-1, where=None):
    def term(x, t):
        return t * (_log(t) - x) if t else 0.0

    return _divergence(term, log_predictions, targets, axis, where)


def kl_divergence_with_log_targets(log_predictions, log_targets, *, axis=-1, where=None):
    def term(x, log_t):
        return 0.0 if log_t == -INF else _times(_or_inf(math.exp, log_t), log_t - x)

    return _divergence(term, log_predictions, log_targets, axis, where)


def _negative_log_softmax(x):
    """lse - x[c] for every class c, and lse."""
    top = max(range(len(x)), key=x.__getitem__)
    # The largest logit contributes exactly 1 to the sum, so the rest alone decide the small losses.
    rest = math.log1p(_sum(math.exp(x[c] - x[top]) for c in range(len(x)) if c != top))
    return [(x[top] - x[c]) + rest for c in range(len(x))], x[top] + rest


def _capped(x, softcap, temperature=1.0):
    if softcap is None:
        return [a / temperature for a in x]
    return [softcap * math.tanh(a / softcap) / temperature for a in x]


def softmax_statistics(logits, labels, *, where=None, temperature=1.0, softcap=None):
    """Of labels (..., K)."""
    kept = _mask(where, logits)
    log_prob = np.zeros(np.shape(labels))
    log_normalizer, entropy = (np.zeros(kept.shape[:-1]) for _ in range(2))
    prediction = np.full(kept.shape[:-1], -1)
    for i in np.ndindex(prediction.shape):
        classes = np.flatnonzero(kept[i]).tolist()
        if classes:
            x = [float(logits[i][c]) for c in classes]
            z = _capped(x, softcap, temperature)
            nll, log_normalizer[i] = _negative_log_softmax(z)
            entropy[i] = _sum(_times(math.exp(-n), n) for n in nll)
            prediction[i] = classes[z.index(max(z))]
            found = dict(zip(classes, nll, strict=True))
            log_prob[i] = [-found.get(y, NAN) for y in np.asarray(labels)[i].tolist()]
    return log_prob, log_normalizer, entropy, prediction


def softmax_cross_entropy_with_integer_labels(
    logits, labels, *, where=None, class_weights=None, label_smoothing=0.0, z_loss=0.0, softcap=None
):
    def one(x, y, w, classes):
        if y not in classes:
            return NAN
        nll, lse = _negative_log_softmax(_capped(x, softcap))
        k = classes.index(y)
        loss = _times((1 - label_smoothing) * w[k], nll[k])
        loss += _times(label_smoothing / len(x), _sum(map(_times, w, nll)))
        return loss + _times(z_loss, lse * lse)

    w = _each_class(class_weights, logits)
    return _examples(one, logits, labels, w, _indices(logits), where=where)


def linear_softmax_cross_entropy(
    inputs, kernel, labels, *, bias=None, where=None, chunk_size=None, **options
):
    logits = np.asarray(inputs, np.float64) @ np.asarray(kernel, np.float64).T
    logits = logits if bias is None else logits + np.asarray(bias)
    integers = np.issubdtype(np.asarray(labels).dtype, np.integer)
    loss = softmax_cross_entropy_with_integer_labels if integers else softmax_cross_entropy
    return loss(logits, labels, where=where, **options)


def softmax_cross_entropy(
    logits, labels, *, where=None, class_weights=None, label_smoothing=0.0, z_loss=0.0, softcap=None
):
    def one(x, t, w):
        nll, lse = _negative_log_softmax(_capped(x, softcap))
        q = [(1 - label_smoothing) * t[c] + label_smoothing / len(x) for c in range(len(x))]
        loss = _sum(_times(w[c] * q[c], nll[c]) for c in range(len(x)))
        return loss + _times(z_loss, lse * lse)

    return _examples(one, logits, labels, _each_class(class_weights, logits), where=where)


def _binary(x, y, pos_weight=1.0):
    return _times(pos_weight * y, _softplus(-x)) + _times(1 - y, _softplus(x))


def sigmoid_binary_cross_entropy(logits, labels, *, pos_weight=None):
    return _elements(_binary, logits, labels, 1.0 if pos_weight is None else pos_weight)


def binary_cross_entropy(probabilities, labels):
    def one(p, y):
        return -y * _clamp(_log(p), -100.0) - (1 - y) * _clamp(_log1p(-p), -100.0)

    return _elements(one, probabilities, labels)


def soft_margin_loss(scores, targets):
    return _elements(lambda x, y: _softplus(-y * x), scores, targets)


def multilabel_soft_margin_loss(logits, labels, *, class_weights=None, where=None):
    def one(x, y, w):
        return _sum(_times(w[c], _binary(x[c], y[c])) for c in range(len(x))) / len(x)

    return _examples(one, logits, labels, _each_class(class_weights, logits), where=where)


def hinge_embedding_loss(distances, targets, *, margin=1.0):
    def one(x, y):
        return (x if y != -1 else 0.0) + (_clamp(margin - x) if y != 1 else 0.0)

    return _elements(one, distances, targets)


def margin_ranking_loss(scores1, scores2, targets, *, margin=0.0):
    return _elements(lambda x1, x2, y: _clamp(-y * (x1 - x2) + margin), scores1, scores2, targets)


def multi_margin_loss(scores, labels, *, p=1, margin=1.0, class_weights=None, where=None):
    def one(x, y, w, classes):
        if y not in classes:
            return NAN
        own = classes.index(y)
        short = [_clamp(margin - x[own] + x[c]) for c in range(len(x)) if c != own]
        return w[own] * _sum(_or_inf(pow, s, p) for s in short) / len(x)

    weights = _each_class(class_weights, scores)
    return _examples(one, scores, labels, weights, _indices(scores), where=where)


def multilabel_margin_loss(scores, labels):
    def one(x, y):
        wanted = list(itertools.takewhile(lambda label: label >= 0, y))
        if any(label >= len(x) for label in wanted):
            return NAN
        others = [c for c in range(len(x)) if c not in wanted]
        return _sum(_clamp(1 - (x[k] - x[c])) for k in wanted for c in others) / len(x)

    return _examples(one, scores, labels)


def _cosine(x1, x2):
    n1, n2 = math.hypot(*x1), math.hypot(*x2)
    if n1 == 0 or n2 == 0:
        return 0.0
    return _sum((a / n1) * (b / n2) for a, b in zip(x1, x2, strict=True))


def _norm(x, p):
    x = [abs(v) for v in x]
    largest = NAN if any(map(math.isnan, x)) else max(x)
    if p == 0:
        return float(sum(v != 0 for v in x))
    if p == INF or largest == 0 or not math.isfinite(largest):
        return largest
    return largest * _or_inf(pow, _sum((v / largest) ** p for v in x), 1 / p)


def cosine_similarity(x1, x2):
    return _examples(_cosine, x1, x2)


def cosine_embedding_loss(x1, x2, targets, *, margin=0.0):
    def one(cosine, t):
        return (1 - cosine if t == 1 else 0.0) + (_clamp(cosine - margin) if t == -1 else 0.0)

    return _elements(one, cosine_similarity(x1, x2), targets)


def pairwise_distance(x1, x2, *, p=2.0, eps=1e-6):
    def one(x1, x2):
        return _norm([a - b + eps for a, b in zip(x1, x2, strict=True)], p)

    return _examples(one, x1, x2)


def triplet_margin_loss(anchors, positives, negatives, *, margin=1.0, p=2.0, eps=1e-6, swap=False):
    def distance(x1, x2):
        return pairwise_distance(x1, x2, p=p, eps=eps)

    return triplet_margin_with_distance_loss(
        anchors, positives, negatives, distance_function=distance, margin=margin, swap=swap
    )


def triplet_margin_with_distance_loss(
    anchors, positives, negatives, *, distance_function=None, margin=1.0, swap=False
):
    d = distance_function or pairwise_distance
    near, far = d(anchors, positives), d(anchors, negatives)
    if swap:
        far = np.minimum(far, d(positives, negatives))
    return _elements(lambda near, far: _clamp(near - far + margin), near, far)


def l2_loss(predictions, targets):
    return 0.5 * squared_error(predictions, targets)


def log_cosh(predictions, targets):
    def one(x, t):
        e = abs(x - t)
        if e < 0.1:  # log cosh e = log(1 + 2 sinh²(e/2))
            return math.log1p(2 * math.sinh(e / 2) ** 2)
        return e + math.log1p(math.exp(-2 * e)) - math.log(2)

    return _elements(one, predictions, targets)


def hinge_loss(predictor_outputs, targets):
    return _elements(lambda x, y: _clamp(1 - y * x), predictor_outputs, targets)


def perceptron_loss(predictor_outputs, targets):
    return _elements(lambda x, y: _clamp(-y * x), predictor_outputs, targets)


def _by_label(f, scores, labels, where):
    """f of the label's score and the other scores; NaN for a bad label."""

    def one(x, y, classes):
        if y not in classes:
            return NAN
        k = classes.index(y)
        return f(x[k], x[:k] + x[k + 1 :])

    return _examples(one, scores, labels, _indices(scores), where=where)


def multiclass_hinge_loss(scores, labels, *, where=None):
    def one(own, others):
        return max([0.0, *(1 + x - own for x in others)])

    return _by_label(one, scores, labels, where)


def multiclass_perceptron_loss(scores, labels, *, where=None):
    return _by_label(lambda own, others: max([own, *others]) - own, scores, labels, where)


def sparsemax_loss(logits, labels):
    def one(x, y):
        z = x if y else -x
        return 0.0 if z >= 1 else -z if z <= -1 else (1 - z) ** 2 / 4

    return _elements(one, logits, labels)


def multiclass_sparsemax_loss(scores, labels, *, where=None):
    def one(own, others):
        # Relative to the label's score: the maximum over the simplex of p·x - ½ ‖p‖² + ½.
        x = sorted([0.0, *(x - own for x in others)], reverse=True)
        sizes = [k for k in range(1, len(x) + 1) if 1 + k * x[k - 1] > _sum(x[:k])]
        threshold = (_sum(x[: sizes[-1]]) - 1) / sizes[-1]
        p = [_clamp(v - threshold) for v in x]
        return _sum(a * v - a * a / 2 for a, v in zip(p, x, strict=True)) + 0.5

    return _by_label(one, scores, labels, where)


def generalized_kl_divergence(log_predictions, targets, *, where=None):
    def term(x, t):
        return (t * (_log(t) - x) if t else 0.0) + _or_inf(math.exp, x) - t

    return _divergence(term, log_predictions, targets, -1, where)


def convex_kl_divergence(log_predictions, targets, *, where=None):
    return generalized_kl_divergence(log_predictions, targets, where=where)


def sigmoid_focal_loss(logits, labels, *, alpha=None, gamma=2.0):
    def one(x, y):
        wrong = y * math.exp(-_softplus(x)) + (1 - y) * math.exp(-_softplus(-x))
        weight = 1.0 if alpha is None else alpha * y + (1 - alpha) * (1 - y)
        return weight * wrong**gamma * _binary(x, y)

    return _elements(one, logits, labels)


def softmax_focal_loss_with_integer_labels(
    logits, labels, *, gamma=2.0, class_weights=None, where=None
):
    def one(x, y, w, classes):
        if y not in classes:
            return NAN
        nll, _ = _negative_log_softmax(x)
        k = classes.index(y)
        return w[k] * (-math.expm1(-nll[k])) ** gamma * nll[k]

    weights = _each_class(class_weights, logits)
    return _examples(one, logits, labels, weights, _indices(logits), where=where)


def poly_loss_cross_entropy(logits, labels, *, epsilon=2.0, where=None):
    def one(x, t):
        nll, _ = _negative_log_softmax(x)
        return _sum(_times(t[c], nll[c] - epsilon * math.expm1(-nll[c])) for c in range(len(x)))

    return _examples(one, logits, labels, where=where)


def safe_softmax_cross_entropy(logits, labels, *, where=None):
    return softmax_cross_entropy(logits, labels, where=where)


def ranking_softmax_loss(logits, labels, *, weights=None, reduce_fn=None, where=None):
    assert reduce_fn is None
    relevance = np.asarray(labels, np.float64) * _each_class(weights, logits)
    return softmax_cross_entropy(logits, relevance, where=where)


def cosine_distance(predictions, targets):
    def one(x1, x2):
        n1, n2 = math.hypot(*x1), math.hypot(*x2)
        if n1 == 0 or n2 == 0:
            return 1.0
        return _sum((a / n1 - b / n2) ** 2 for a, b in zip(x1, x2, strict=True)) / 2

    return _examples(one, predictions, targets)


def _probabilities(x, logits):
    """p of each class of a pixel."""
    if not logits:
        return x
    if len(x) == 1:
        return [math.exp(-_softplus(-x[0]))]
    return [math.exp(-nll) for nll in _negative_log_softmax(x)[0]]


def _dice(predictions, targets, alpha, beta, smooth, logits):
    """1 less the coefficient of each class of each example, (N, pixels, C)."""
    x, t = (np.asarray(a, np.float64) for a in (predictions, targets))
    out = np.empty((x.shape[0], x.shape[2]))
    for n in range(x.shape[0]):
        p = [_probabilities(pixel.tolist(), logits) for pixel in x[n]]
        for c in range(x.shape[2]):
            pairs = [(p[i][c], t[n, i, c].item()) for i in range(x.shape[1])]
            right = _sum(a * b for a, b in pairs)
            alarms, misses = _sum(a for a, _ in pairs) - right, _sum(b for _, b in pairs) - right
            whole = right + alpha * alarms + beta * misses + smooth
            out[n, c] = 1 - (right + smooth) / whole if whole else 0.0
    return out


def dice_loss(
    predictions,
    targets,
    *,
    class_weights=None,
    smooth=1.0,
    alpha=0.5,
    beta=0.5,
    apply_softmax=True,
    reduction="mean",
    ignore_background=False,
    axis=-2,
):
    assert axis == -2
    losses = _dice(predictions, targets, alpha, beta, smooth, apply_softmax)
    losses = losses * _each_class(class_weights, losses)
    losses = losses[:, 1:] if ignore_background else losses
    return {"mean": losses.mean(-1), "sum": losses.sum(-1), "none": losses}[reduction]


def tversky_loss(predictions, targets, **options):
    return dice_loss(predictions, targets, **options)


def binary_dice_loss(predictions, targets, *, smooth=1.0, apply_sigmoid=True):
    return _dice(predictions, targets, 0.5, 0.5, smooth, apply_sigmoid)[:, 0]


def multiclass_generalized_dice_loss(predictions, targets, *, smooth=1.0, reduction="mean"):
    sizes = np.asarray(targets, np.float64).sum((0, 1))
    weights = np.array([1 / size**2 if size else 0.0 for size in sizes])
    losses = _dice(predictions, targets, 0.5, 0.5, smooth, True)
    losses = losses * weights * len(sizes) / weights.sum()
    return losses if reduction == "none" else losses.mean()


def ntxent_per_example(embeddings, labels, temperature=0.07):
    x, y = np.asarray(embeddings, np.float64).tolist(), np.asarray(labels).tolist()

    def pair(i, j):
        rivals = [k for k in range(len(y)) if y[k] != y[i]]
        s = [_cosine(x[i], x[k]) / temperature for k in [j, *rivals]]
        return _negative_log_softmax(s)[0][0]

    out = np.zeros(len(y))
    for i in range(len(y)):
        own = [j for j in range(len(y)) if j != i and y[j] == y[i]]
        if own:
            out[i] = _sum(pair(i, j) for j in own) / len(own)
    return out


def _similarities(x1, x2, scale, bias=0.0):
    x1, x2 = (np.asarray(x, np.float64).tolist() for x in (x1, x2))
    return [[scale * _sum(map(_times, a, b)) + bias for b in x2] for a in x1]


def info_nce_loss(x1, x2, *, temperature=0.07, symmetric=True, chunk_size=None):
    z = _similarities(x1, x2, 1 / temperature)
    places = range(len(z))
    losses = [_negative_log_softmax(z[i])[0][i] for i in places]
    if symmetric:
        columns = ([z[j][i] for j in places] for i in places)
        losses = [
            (loss + _negative_log_softmax(column)[0][i]) / 2
            for i, (loss, column) in enumerate(zip(losses, columns, strict=True))
        ]
    return np.array(losses)


def sigmoid_contrastive_loss(x1, x2, *, scale, bias, chunk_size=None):
    z = _similarities(x1, x2, scale, bias)
    out = np.zeros(len(z))
    for i, row in enumerate(z):
        # log(1 + exp(-u)) is the cross entropy of u against 0.
        signed = (u if i == j else -u for j, u in enumerate(row))
        out[i] = _sum(_negative_log_softmax([u, 0.0])[0][0] for u in signed)
    return out


def supervised_contrastive_loss(embeddings, labels, *, temperature=0.07, chunk_size=None):
    z, y = _similarities(embeddings, embeddings, 1 / temperature), np.asarray(labels).tolist()
    out = np.zeros(len(y))
    for i in range(len(y)):
        others = [a for a in range(len(y)) if a != i]
        each = _negative_log_softmax([z[i][a] for a in others])[0] if others else []
        own = [each[k] for k, a in enumerate(others) if y[a] == y[i]]
        out[i] = _sum(own) / len(own) if own else 0.0
    return out


def reduce(losses, reduction="mean", *, weights=None, where=None, normalizer=None):
    assert reduction in ("none", "mean", "sum", "batchmean")
    kept = _mask(where, losses)
    weights = _elements(lambda _, w: w, losses, 1.0 if weights is None else weights)
    weighted = _elements(lambda x, w, k: _times(w, x) if k else 0.0, losses, weights, kept)
    if reduction == "none":
        return weighted
    total = _sum(weighted.ravel().tolist())
    if reduction == "sum":
        return np.asarray(total)
    count = _sum(weights[kept].tolist()) if reduction == "mean" else len(weighted)
    count = count if normalizer is None else float(normalizer)
    return np.asarray(total / count if count else 0.0)


def gradient(f, x, *, step=2.0**-7, levels=3):
    """d(sum of f)/dx, with no kink or pole within `step` of x: good to about 1e-12."""
    x = np.array(x, np.float64)
    out = np.empty(x.shape)
    for i in np.ndindex(x.shape):
        slopes = [_slope(f, x, i, step / 2**k) for k in range(levels)]
        # Richardson: the error has even powers of the step only; each pass cancels one of them.
        for power in range(1, levels):
            pairs = itertools.pairwise(slopes)
            slopes = [fine + (fine - coarse) / (4**power - 1) for coarse, fine in pairs]
        out[i] = slopes[0]
    return out


def _slope(f, x, i, step):
    up, down = x.copy(), x.copy()
    up[i], down[i] = x[i] + step, x[i] - step
    # Subtracted before they are summed: the losses that x[i] does not touch cancel exactly.
    change = np.asarray(f(up), np.float64) - np.asarray(f(down), np.float64)
    return change.sum() / (up[i] - down[i])


def ctc(logits, labels, blank_id=0):
    """Loss, its gradient and the alignment (T, L) of one sequence, from logarithms in float64."""
    logits = np.asarray(logits, np.float64)
    frames, classes = logits.shape
    with np.errstate(divide="ignore", invalid="ignore"):
        shifted = logits - logits.max(-1, keepdims=True, initial=-np.inf)
        log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    symbols = np.full(2 * len(labels) + 1, blank_id)
    symbols[1::2] = labels
    may_skip = np.zeros(len(symbols), bool)
    may_skip[2:] = symbols[2:] != symbols[:-2]
    may_skip[::2] = False
    if not frames:
        loss = np.inf if len(labels) else 0.0
        return loss, np.zeros((0, classes)), np.zeros((0, len(labels)))

    def come(variables):
        """What comes from the states behind, in logarithms."""
        by_one = np.concatenate([[-np.inf], variables[:-1]])
        by_two = np.concatenate([[-np.inf] * 2, variables[:-2]])[: len(variables)]
        by_two = np.where(may_skip, by_two, -np.inf)
        return np.logaddexp(np.logaddexp(variables, by_one), by_two)

    def go(variables):
        by_one = np.concatenate([variables[1:], [-np.inf]])
        by_two = np.where(may_skip, variables, -np.inf)
        by_two = np.concatenate([by_two[2:], [-np.inf] * 2])[: len(variables)]
        return np.logaddexp(np.logaddexp(variables, by_one), by_two)

    emitted = log_probs[:, symbols]
    forward = np.full(emitted.shape, -np.inf)
    backward = np.full(emitted.shape, -np.inf)  # Without the frame's own symbol.
    forward[0, :2] = emitted[0, :2]
    backward[-1, -2:] = 0
    for t in range(1, frames):
        forward[t] = come(forward[t - 1]) + emitted[t]
        backward[-1 - t] = go(backward[-t] + emitted[-t])
    log_likelihood = np.logaddexp.reduce(forward[-1, -2:])
    if log_likelihood == -np.inf:
        return np.inf, np.zeros_like(logits), np.zeros((frames, len(labels)))
    posterior = np.exp(forward + backward - log_likelihood)
    gradient = np.exp(log_probs)
    for state, symbol in enumerate(symbols):
        gradient[:, symbol] -= posterior[:, state]
    return -log_likelihood, gradient, posterior[:, 1::2]


def ctc_loss(logits, logit_paddings, labels, label_paddings, blank_id=0):
    rows = zip(logits, logit_paddings == 0, labels, label_paddings == 0, strict=True)
    return np.array([ctc(x[frames], y[own], blank_id)[0] for x, frames, y, own in rows])


def rnnt(logits, labels, blank_id=0):
    """Loss and gradient of one sequence, from logarithms in float64."""
    logits = np.asarray(logits, np.float64)
    frames, rows, _ = logits.shape
    with np.errstate(divide="ignore", invalid="ignore"):
        shifted = logits - logits.max(-1, keepdims=True)
        log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    if not frames:
        return (np.inf if len(labels) else 0.0), np.zeros_like(logits)
    blank = log_probs[..., blank_id]
    label = np.full((frames, rows), -np.inf)  # Behind the last there is none.
    label[:, :-1] = log_probs[:, range(rows - 1), labels]
    # Behind the last frame and row stands nothing, and by index -1 before the first.
    forward, backward = (np.full((frames + 1, rows + 1), -np.inf) for _ in range(2))
    forward[0, 0] = backward[frames, rows - 1] = 0
    # All nodes with the same t + u at once.
    diagonals = [
        np.arange(max(0, n - frames + 1), min(n, rows - 1) + 1) for n in range(frames + rows - 1)
    ]
    for n, u in enumerate(diagonals[1:], 1):
        by_blank = forward[n - u - 1, u] + blank[n - u - 1, u]
        by_label = forward[n - u, u - 1] + label[n - u, u - 1]
        forward[n - u, u] = np.logaddexp(by_blank, by_label)
    for n, u in reversed([*enumerate(diagonals)]):
        by_blank = backward[n - u + 1, u] + blank[n - u, u]
        by_label = backward[n - u, u + 1] + label[n - u, u]
        backward[n - u, u] = np.logaddexp(by_blank, by_label)
    total = backward[0, 0]
    if total == -np.inf:
        return np.inf, np.zeros_like(logits)
    blank_shares = np.exp(forward[:-1, :-1] + blank + backward[1:, :-1] - total)
    label_shares = np.exp(forward[:-1, :-1] + label + backward[:-1, 1:] - total)
    gradient = np.exp(log_probs) * (blank_shares + label_shares)[..., None]
    gradient[..., blank_id] -= blank_shares
    for row, symbol in enumerate(labels):
        gradient[:, row, symbol] -= label_shares[:, row]
    return -total, gradient


def rnnt_loss(logits, logit_paddings, labels, label_paddings, blank_id=0):
    losses = []
    for x, frames, y, own in zip(logits, logit_paddings, labels, label_paddings, strict=True):
        rows = np.concatenate([[True], own == 0])
        losses.append(rnnt(x[frames == 0][:, rows], y[own == 0], blank_id)[0])
    return np.array(losses)
