"""Errors name the function, the argument, what it should be and what came."""

# pyright: reportArgumentType=false, reportCallIssue=false
# Wrong calls are the subject here.

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss import functional as F

X, Y, ONE = jnp.ones((2, 3)), jnp.array([0, 1]), jnp.ones((2, 3))
INTEGERS = jnp.ones((2, 3), jnp.int32)
WIDE = jnp.ones((2, 4))
# Two sequences of 5 frames of 3 symbols, with 2 labels; torch's arguments are the same in time.
LOGITS, FRAMES, SPOKEN = jnp.ones((2, 5, 3)), jnp.zeros((2, 5)), jnp.ones((2, 2), int)
IN_TIME, LENGTHS = jnp.ones((5, 2, 3)), (5, 5)
PADDINGS = jnp.zeros((2, 2))

# The call, the kind of error, and its words.
STATIC = [
    (
        lambda: F.l1_loss(X, WIDE),
        ValueError,
        "l1_loss: `target` must have `input`'s shape (2, 3), got (2, 4)",
    ),
    (
        lambda: jaxloss.huber_loss(X, WIDE),
        ValueError,
        "huber_loss: `targets` must have `predictions`'s shape (2, 3), got (2, 4)",
    ),
    (
        lambda: F.mse_loss(X, jnp.ones(3)),
        ValueError,
        "mse_loss: `target` must have `input`'s shape (2, 3), got (3,)",
    ),
    (
        lambda: F.l1_loss(INTEGERS, INTEGERS),
        TypeError,
        "l1_loss: `input` must be a floating-point or complex array, got int32",
    ),
    (
        lambda: F.mse_loss(INTEGERS, X),
        TypeError,
        "mse_loss: `input` must be a floating-point array, got int32",
    ),
    (
        lambda: F.mse_loss(X, X.astype(jnp.complex64)),
        TypeError,
        "mse_loss: `target` must be a floating-point array, got complex64",
    ),
    (lambda: F.mse_loss(None, X), TypeError, "mse_loss: `input` must be an array, got NoneType"),
    (lambda: F.mse_loss(X, None), TypeError, "mse_loss: `target` must be an array, got NoneType"),
    (
        lambda: F.mse_loss(X, [[1.0], [1.0, 2.0]]),
        TypeError,
        "mse_loss: `target` must be an array, got a list that does not make one",
    ),
    *(
        (
            lambda array=array: F.mse_loss(X, array),
            TypeError,
            "mse_loss: `target` must be an array of numbers, got numpy.ndarray of dtype "
            f"{array.dtype}",
        )
        for array in (
            np.array([1, None]),
            np.ones((2, 3), object),
            np.array(["a"]),
            np.array(["2020"], "datetime64[Y]"),
        )
    ),
    (
        lambda: F.mse_loss(X, [["a"], [1.0]]),
        TypeError,
        "mse_loss: `target` must be an array, got str",
    ),
    (
        lambda: jaxloss.huber_loss(X, X, delta="1"),
        TypeError,
        "huber_loss: `delta` must be a number, got str",
    ),
    (
        lambda: jaxloss.softmax_cross_entropy(X, X, label_smoothing=None),
        TypeError,
        "softmax_cross_entropy: `label_smoothing` must be a number, got NoneType",
    ),
    (
        lambda: jaxloss.softmax_cross_entropy(X, X, where=X[:, 0] > 0),
        ValueError,
        "softmax_cross_entropy: `where` must have the rank of `logits` and broadcast to its shape "
        "(2, 3), got (2,): write `where[..., None]`",
    ),
    (
        lambda: jaxloss.softmax_cross_entropy(X, X, where=True),
        ValueError,
        "softmax_cross_entropy: `where` must have the rank of `logits` and broadcast to its shape "
        "(2, 3), got (): leave it out where everything takes part",
    ),
    *(
        (
            lambda mask=mask: jaxloss.softmax_cross_entropy(X, X, where=mask),
            TypeError,
            f"softmax_cross_entropy: `where` must be a boolean array, got {mask.dtype}: write "
            "`mask > 0`, or pass `weights=` to `reduce`",
        )
        for mask in (INTEGERS, X)
    ),
    *(
        (
            lambda function=function: function(jnp.ones((2, 5, 3)), jnp.ones((2, 5), int)),
            ValueError,
            f"{function.__name__}: `target` must have shape (2, 3), got (2, 5): the classes stand "
            "in axis 1, so write `jnp.moveaxis(input, -1, 1)`",
        )
        for function in (F.cross_entropy, F.nll_loss)
    ),
    (
        lambda: F.cross_entropy(X, ONE, ignore_index=0),
        ValueError,
        "cross_entropy: `ignore_index` must be left at -100 for class probabilities, got another "
        "class index",
    ),
    (
        lambda: jaxloss.huber_loss(X, X, delta=np.float32(-1)),
        ValueError,
        "huber_loss: `delta` must be positive, got -1.0",
    ),
    (
        lambda: F.pairwise_distance(X, X, p=2j),
        TypeError,
        "pairwise_distance: `p` must be real, got 2j",
    ),
    (
        lambda: jaxloss.kl_divergence(X, X, axis=[0, 1]),
        TypeError,
        "kl_divergence: `axis` must be hashable, for it shapes the computation, got [0, 1]",
    ),
    (
        lambda: F.l1_loss(X, X, reduction=X),
        TypeError,
        "l1_loss: `reduction` must be a Python value, for it shapes the computation, got an array",
    ),
    (
        lambda: F.cross_entropy(X, Y, ignore_index=None),
        TypeError,
        "cross_entropy: `ignore_index` must be an integer, got None",
    ),
    (
        lambda: jaxloss.triplet_margin_with_distance_loss(X, X, WIDE),
        ValueError,
        "triplet_margin_with_distance_loss: `negatives` must have `anchors`'s shape (2, 3), "
        "got (2, 4)",
    ),
    (
        lambda: F.triplet_margin_with_distance_loss(X, X, X, distance_function="l2"),
        TypeError,
        "triplet_margin_with_distance_loss: `distance_function` must be callable or None, got 'l2'",
    ),
    (
        lambda: F.cross_entropy(X[:, :0], Y),
        ValueError,
        "cross_entropy: `input` must have at least one class, got shape (2, 0)",
    ),
    (
        lambda: F.cross_entropy(X[:, :0], X[:, :0]),
        ValueError,
        "cross_entropy: `input` must have at least one class, got shape (2, 0)",
    ),
    (
        lambda: jaxloss.negative_log_likelihood(X[:, :0], Y),
        ValueError,
        "negative_log_likelihood: `log_probs` must have at least one class, got shape (2, 0)",
    ),
    (
        lambda: jaxloss.multilabel_margin_loss(X[:, :0], X[:, :0].astype(int)),
        ValueError,
        "multilabel_margin_loss: `scores` must have at least one class, got shape (2, 0)",
    ),
    (
        lambda: jaxloss.linear_softmax_cross_entropy(X, X[:0], Y),
        ValueError,
        "linear_softmax_cross_entropy: `kernel` must hold a row for at least one class, got (0, 3)",
    ),
    (
        lambda: jaxloss.adaptive_log_softmax(X, X, X),
        TypeError,
        "adaptive_log_softmax: `tail` must be a list that holds a projection and weights for each "
        "cluster",
    ),
    (
        lambda: jaxloss.ctc_loss(LOGITS, None, SPOKEN, PADDINGS),
        TypeError,
        "ctc_loss: `logit_paddings` must be an array, got NoneType",
    ),
    (
        lambda: F.ctc_loss(IN_TIME, SPOKEN, LENGTHS, (2, 2), blank="-"),
        TypeError,
        "ctc_loss: `blank` must be an integer, got '-'",
    ),
    (
        lambda: F.ctc_loss(IN_TIME, [[1], [1, 2]], LENGTHS, (1, 2)),
        TypeError,
        "ctc_loss: `targets` must be an array, got a list that does not make one",
    ),
    (
        lambda: F.l1_loss(X, X, weight=Y),
        ValueError,
        "l1_loss: `weight` must have `input`'s shape (2, 3), got (2,)",
    ),
    (
        lambda: F.gaussian_nll_loss(X, X, X, full="yes"),
        ValueError,
        "gaussian_nll_loss: `full` must be False or True, got 'yes'",
    ),
    (
        lambda: jaxloss.triplet_margin_loss(X, X, X, swap=None),
        ValueError,
        "triplet_margin_loss: `swap` must be False or True, got None",
    ),
    (
        lambda: F.l1_loss(X, X, reduction="avg"),
        ValueError,
        "l1_loss: `reduction` must be 'none', 'mean' or 'sum', got 'avg'",
    ),
    (
        lambda: F.l1_loss(X, X, reduction="batchmean"),
        ValueError,
        "l1_loss: `reduction` must be 'none', 'mean' or 'sum', got 'batchmean'",
    ),
    (
        lambda: F.kl_div(X, X, reduction="avg"),
        ValueError,
        "kl_div: `reduction` must be 'none', 'mean', 'sum' or 'batchmean', got 'avg'",
    ),
    (
        lambda: F.huber_loss(X, X, delta=0),
        ValueError,
        "huber_loss: `delta` must be positive, got 0",
    ),
    (
        lambda: jaxloss.huber_loss(X, X, delta=-1.0),
        ValueError,
        "huber_loss: `delta` must be positive, got -1.0",
    ),
    (
        lambda: F.huber_loss(X, X, delta=jnp.ones(3)),
        ValueError,
        "huber_loss: `delta` must be a number or have shape (2, 3), got (3,)",
    ),
    (
        lambda: F.smooth_l1_loss(X, X, beta=-1),
        ValueError,
        "smooth_l1_loss: `beta` must be 0 or more, got -1",
    ),
    (
        lambda: F.cross_entropy(X, Y, label_smoothing=1.5),
        ValueError,
        "cross_entropy: `label_smoothing` must be between 0 and 1, got 1.5",
    ),
    *(
        (
            lambda name=name, value=value: jaxloss.softmax_statistics(X, Y, **{name: value}),
            ValueError,
            f"softmax_statistics: `{name}` must be positive, got {value}",
        )
        for name, value in (("temperature", 0), ("temperature", -1.0), ("softcap", 0.0))
    ),
    (
        lambda: jaxloss.softmax_cross_entropy_with_integer_labels(X, Y, softcap=-2),
        ValueError,
        "softmax_cross_entropy_with_integer_labels: `softcap` must be positive, got -2",
    ),
    (
        lambda: jaxloss.softmax_cross_entropy(X, X, softcap=jnp.ones(3)),
        ValueError,
        "softmax_cross_entropy: `softcap` must be a number, got shape (3,)",
    ),
    (
        lambda: jaxloss.softmax_statistics(X, jnp.array([0, 1, 2])),
        ValueError,
        "softmax_statistics: `labels` must have shape (2,), got (3,)",
    ),
    (
        lambda: jaxloss.softmax_statistics(X, jnp.zeros((3, 1), int)),
        ValueError,
        "softmax_statistics: `labels` must have shape (2, 1), got (3, 1)",
    ),
    (
        lambda: jaxloss.softmax_statistics(X, X),
        TypeError,
        "softmax_statistics: `labels` must be an array of integers, got float32",
    ),
    (
        lambda: jaxloss.softmax_statistics(X[:, :0], Y),
        ValueError,
        "softmax_statistics: `logits` must have at least one class, got shape (2, 0)",
    ),
    (
        lambda: jaxloss.softmax_statistics(X, Y, axis=()),
        ValueError,
        "softmax_statistics: `axis` must name a class dimension of `logits`, got ()",
    ),
    (
        lambda: F.cross_entropy(X, Y, jnp.ones(2)),
        ValueError,
        "cross_entropy: `weight` must have shape (3,), got (2,)",
    ),
    (
        lambda: F.cross_entropy(X, jnp.array([0, 1, 2])),
        ValueError,
        "cross_entropy: `target` must have shape (2,), got (3,)",
    ),
    (
        lambda: F.cross_entropy(X, INTEGERS),
        TypeError,
        "cross_entropy: `target` must be floating-point where it has `input`'s shape, as class "
        "probabilities, got int32",
    ),
    (
        lambda: F.cross_entropy(X, jnp.ones(2)),
        TypeError,
        "cross_entropy: `target` must be an array of integers, got float32",
    ),
    (
        lambda: F.cross_entropy(jnp.float32(1), Y),
        ValueError,
        "cross_entropy: `input` must have shape (C), (N, C) or (N, C, d1, ..., dK), got ()",
    ),
    (
        lambda: F.cross_entropy(X, Y, ignore_index=1.5),
        TypeError,
        "cross_entropy: `ignore_index` must be an integer, got float32[]",
    ),
    (
        lambda: F.nll_loss(X, Y, jnp.ones((3, 1))),
        ValueError,
        "nll_loss: `weight` must have shape (3,), got (3, 1)",
    ),
    (
        lambda: F.nll_loss(jnp.ones((2, 3, 4)), Y),
        ValueError,
        "nll_loss: `target` must have shape (2, 4), got (2,)",
    ),
    (
        lambda: F.gaussian_nll_loss(X, X, jnp.ones(3)),
        ValueError,
        "gaussian_nll_loss: `var` must have shape (2, 3), with at most one dimension equal to 1 "
        "instead, got (3,)",
    ),
    (
        lambda: F.gaussian_nll_loss(X, X, jnp.ones((1, 1))),
        ValueError,
        "gaussian_nll_loss: `var` must have shape (2, 3), with at most one dimension equal to 1 "
        "instead, got (1, 1)",
    ),
    (
        lambda: F.gaussian_nll_loss(X, WIDE, X),
        ValueError,
        "gaussian_nll_loss: `target` must have shape (2, 3), with at most one dimension equal to 1 "
        "instead, got (2, 4)",
    ),
    (
        lambda: jaxloss.gaussian_nll_loss(X, X, jnp.ones(3)),
        ValueError,
        "gaussian_nll_loss: `variances` must broadcast to (2, 3) with 2 dimensions, got (3,)",
    ),
    (
        lambda: F.binary_cross_entropy(X, X, WIDE),
        ValueError,
        "binary_cross_entropy: `weight` must broadcast to (2, 3), got (2, 4)",
    ),
    (
        lambda: F.binary_cross_entropy_with_logits(X, X, pos_weight=jnp.ones((1, 2, 3))),
        ValueError,
        "binary_cross_entropy_with_logits: `pos_weight` must broadcast to (2, 3), got (1, 2, 3)",
    ),
    (
        lambda: F.multi_margin_loss(X, Y, p=3),
        ValueError,
        "multi_margin_loss: `p` must be 1 or 2, got 3",
    ),
    (
        lambda: F.multi_margin_loss(jnp.ones((2, 3, 4)), Y),
        ValueError,
        "multi_margin_loss: `input` must have shape (C) or (N, C), got (2, 3, 4)",
    ),
    (
        lambda: F.multilabel_margin_loss(X, Y),
        ValueError,
        "multilabel_margin_loss: `target` must have shape (2, 3), got (2,)",
    ),
    (
        lambda: F.multilabel_margin_loss(X, X),
        TypeError,
        "multilabel_margin_loss: `target` must be an array of integers, got float32",
    ),
    (
        lambda: F.cosine_embedding_loss(X, WIDE, Y),
        ValueError,
        "cosine_embedding_loss: `input2` must have `input1`'s shape (2, 3), got (2, 4)",
    ),
    (
        lambda: F.cosine_embedding_loss(X, X, jnp.ones(3)),
        ValueError,
        "cosine_embedding_loss: `target` must have shape (2,), got (3,)",
    ),
    (
        lambda: F.cosine_similarity(X, WIDE),
        ValueError,
        "cosine_similarity: `x2` must broadcast with the shape (2, 3), got (2, 4)",
    ),
    (
        lambda: F.cosine_similarity(X, X, dim=2),
        ValueError,
        "cosine_similarity: `dim` must name distinct dimensions of `x1`, which has 2, got 2",
    ),
    (
        lambda: F.pairwise_distance(X, X, p="2"),
        ValueError,
        "pairwise_distance: `p` must be a number, got '2'",
    ),
    (
        lambda: F.pairwise_distance(X, X, p=jnp.float32(2)),
        TypeError,
        "pairwise_distance: `p` must be a Python value, for it shapes the computation, got",
    ),
    (
        lambda: F.triplet_margin_loss(X, X, WIDE),
        ValueError,
        "triplet_margin_loss: `negative` must have `anchor`'s shape (2, 3), got (2, 4)",
    ),
    (
        lambda: F.triplet_margin_loss(X, X, X, margin=0),
        ValueError,
        "triplet_margin_loss: `margin` must be positive, got 0",
    ),
    (
        lambda: F.triplet_margin_with_distance_loss(X, X, X, margin=-1),
        ValueError,
        "triplet_margin_with_distance_loss: `margin` must be positive, got -1",
    ),
    (
        lambda: F.margin_ranking_loss(X, X, Y),
        ValueError,
        "margin_ranking_loss: `target` must have `input1`'s shape (2, 3), got (2,)",
    ),
    (
        lambda: jaxloss.softmax_cross_entropy_with_integer_labels(X, Y, where=jnp.ones(2, bool)),
        ValueError,
        "softmax_cross_entropy_with_integer_labels: `where` must have the rank of "
        "`logits` and broadcast to its shape (2, 3), got (2,)",
    ),
    (
        lambda: jaxloss.kl_divergence(X, X, where=X),
        TypeError,
        "kl_divergence: `where` must be a boolean array, got float32",
    ),
    (
        lambda: jaxloss.kl_divergence(X, X, axis=(0, 0)),
        ValueError,
        "kl_divergence: `axis` must name distinct dimensions of `log_predictions`, which has 2, "
        "got (0, 0)",
    ),
    (
        lambda: jaxloss.kl_divergence(X, X, axis="last"),
        TypeError,
        "kl_divergence: `axis` must be an integer, a tuple of integers or None, got 'last'",
    ),
    (
        lambda: jaxloss.softmax_cross_entropy_with_integer_labels(X, Y, axis=()),
        ValueError,
        "softmax_cross_entropy_with_integer_labels: `axis` must name a class dimension",
    ),
    (
        lambda: jaxloss.reduce(X, "avg"),
        ValueError,
        "reduce: `reduction` must be 'none', 'mean', 'sum' or 'batchmean', got 'avg'",
    ),
    (
        lambda: jaxloss.reduce(X, weights=jnp.ones(3)),
        ValueError,
        "reduce: `weights` must broadcast to (2, 3) with 2 dimensions, got (3,)",
    ),
    (
        lambda: jaxloss.reduce(X, weights=jnp.ones(2)),
        ValueError,
        "reduce: `weights` must broadcast to (2, 3) with 2 dimensions, got (2,): "
        "write `weights[..., None]`",
    ),
    (
        lambda: jaxloss.reduce(X, "sum", normalizer=2.0),
        ValueError,
        "reduce: `normalizer` must be None unless `reduction` is 'mean', got",
    ),
    *(
        (
            lambda reduction=reduction: jaxloss.reduce(X, reduction, axis=0),
            ValueError,
            "reduce: `axis` must be None unless `reduction` is 'mean' or 'sum', got 0",
        )
        for reduction in ("none", "batchmean")
    ),
    *(
        (
            lambda axis=axis: jaxloss.reduce(X, axis=axis),
            ValueError,
            "reduce: `axis` must name distinct dimensions of `losses`, which has 2, got ",
        )
        for axis in (2, -3, (0, -2))
    ),
    (
        lambda: jaxloss.reduce(X, axis=1.0),
        TypeError,
        "reduce: `axis` must be an integer, a tuple of integers or None, got 1.0",
    ),
    (
        lambda: jaxloss.reduce(X, axis=1, normalizer=jnp.ones(3)),
        ValueError,
        "reduce: `normalizer` must be a number or have shape (2,), got (3,)",
    ),
    (
        lambda: jaxloss.reduce(Y),
        TypeError,
        "reduce: `losses` must be a floating-point array, got int32",
    ),
    (
        lambda: jaxloss.reduce(jnp.float32(1), "batchmean"),
        ValueError,
        "reduce: `losses` must have a batch dimension for 'batchmean', got a scalar",
    ),
    (
        lambda: jaxloss.linear_softmax_cross_entropy(X, WIDE, Y),
        ValueError,
        "linear_softmax_cross_entropy: `kernel` must have shape (C, 3), got (2, 4)",
    ),
    (
        lambda: jaxloss.linear_softmax_cross_entropy(X, X.T, Y),
        ValueError,
        "linear_softmax_cross_entropy: `kernel` must have shape (C, 3), got (3, 2): "
        "of a Flax layer write `kernel.T`",
    ),
    (
        lambda: F.linear_cross_entropy(X, X.T, Y),
        ValueError,
        "linear_cross_entropy: `linear_weight` must have shape (C, 3) or (C, d1, ..., dK, 3), "
        "got (3, 2): of a Flax layer write `linear_weight.T`",
    ),
    (
        lambda: jaxloss.linear_softmax_cross_entropy(X, X, Y, bias=jnp.ones(3)),
        ValueError,
        "linear_softmax_cross_entropy: `bias` must have shape (2,), got (3,)",
    ),
    (
        lambda: jaxloss.linear_softmax_cross_entropy(X, X, Y, class_weights=jnp.ones((1, 2))),
        ValueError,
        "linear_softmax_cross_entropy: `class_weights` must have shape (2,), got (1, 2)",
    ),
    (
        lambda: jaxloss.linear_softmax_cross_entropy(X, X, Y[:1]),
        ValueError,
        "linear_softmax_cross_entropy: `labels` must have shape (2,), got (1,)",
    ),
    (
        lambda: jaxloss.linear_softmax_cross_entropy(X, X, X),
        ValueError,
        "linear_softmax_cross_entropy: `labels` must have shape (2, 2), as class probabilities, "
        "got (2, 3)",
    ),
    (
        lambda: jaxloss.linear_softmax_cross_entropy(X, X, Y, where=X > 0),
        ValueError,
        "linear_softmax_cross_entropy: `where` must have size 1 along the features, got (2, 3)",
    ),
    (
        lambda: jaxloss.linear_softmax_cross_entropy(INTEGERS, X, Y),
        TypeError,
        "linear_softmax_cross_entropy: `inputs` must be a floating-point array, got int32",
    ),
    (
        lambda: jaxloss.linear_softmax_cross_entropy(X, X, Y, chunk_size=0),
        ValueError,
        "linear_softmax_cross_entropy: `chunk_size` must be an integer of 1 or more, got 0",
    ),
    (
        lambda: jaxloss.linear_softmax_cross_entropy(X, X, Y, chunk_size=jnp.int32(4)),
        TypeError,
        "linear_softmax_cross_entropy: `chunk_size` must be a Python value",
    ),
    (
        lambda: F.linear_cross_entropy(jnp.ones((2, 2, 3)), X, Y),
        ValueError,
        "linear_cross_entropy: `input` must have shape (in) or (N, in), got (2, 2, 3)",
    ),
    (
        lambda: F.linear_cross_entropy(X, WIDE, Y),
        ValueError,
        "linear_cross_entropy: `linear_weight` must have shape (C, 3) or (C, d1, ..., dK, 3), "
        "got (2, 4)",
    ),
    (
        lambda: F.linear_cross_entropy(X[0], jnp.ones((4, 2, 3)), Y),
        ValueError,
        "linear_cross_entropy: `input` must have shape (N, 3), since `linear_weight` has positions "
        "(2,), got (3,)",
    ),
    (
        lambda: F.linear_cross_entropy(X, X, Y, linear_bias=X),
        ValueError,
        "linear_cross_entropy: `linear_bias` must have shape (2,), got (2, 3)",
    ),
    (
        lambda: F.linear_cross_entropy(X, ONE, jnp.ones((2, 2)), ignore_index=1),
        ValueError,
        "linear_cross_entropy: `ignore_index` must be None for class probabilities, got",
    ),
    (
        lambda: F.linear_cross_entropy(X, X, jnp.ones((2, 2), int)),
        TypeError,
        "linear_cross_entropy: `target` must be floating-point where it has the logits' shape, as "
        "class probabilities, got int32",
    ),
    (
        lambda: F.linear_cross_entropy(X, X, Y, label_smoothing=2),
        ValueError,
        "linear_cross_entropy: `label_smoothing` must be between 0 and 1, got 2",
    ),
    (
        lambda: F.linear_cross_entropy(X, X, Y, reduction="avg"),
        ValueError,
        "linear_cross_entropy: `reduction` must be 'none', 'mean' or 'sum', got 'avg'",
    ),
    (
        lambda: jaxloss.ctc_loss(jnp.ones(3), FRAMES, SPOKEN, PADDINGS),
        ValueError,
        "ctc_loss: `logits` must have shape (..., T, C), got (3,)",
    ),
    (
        lambda: jaxloss.ctc_loss(LOGITS, PADDINGS, SPOKEN, PADDINGS),
        ValueError,
        "ctc_loss: `logit_paddings` must have shape (2, 5), got (2, 2)",
    ),
    (
        lambda: jaxloss.ctc_loss(LOGITS, FRAMES, SPOKEN, PADDINGS[0]),
        ValueError,
        "ctc_loss: `label_paddings` must have shape (2, L), got (2,)",
    ),
    (
        lambda: jaxloss.ctc_loss(LOGITS, FRAMES, SPOKEN, FRAMES),
        ValueError,
        "ctc_loss: `labels` must have shape (2, 5), got (2, 2)",
    ),
    (
        lambda: jaxloss.ctc_loss(LOGITS, FRAMES, PADDINGS, PADDINGS),
        TypeError,
        "ctc_loss: `labels` must be an array of integers, got float32",
    ),
    (
        lambda: jaxloss.ctc_alignment(LOGITS, FRAMES, SPOKEN, PADDINGS, blank_id=3),
        ValueError,
        "ctc_alignment: `blank_id` must be a symbol in [0, 3), got 3",
    ),
    (
        lambda: jaxloss.ctc_loss(LOGITS, FRAMES, SPOKEN, PADDINGS, blank_id=Y[0]),
        TypeError,
        "ctc_loss: `blank_id` must be a Python value",
    ),
    (
        lambda: F.ctc_loss(jnp.ones(3), SPOKEN, LENGTHS, LENGTHS),
        ValueError,
        "ctc_loss: `log_probs` must have shape (T, N, C) or (T, C), got (3,)",
    ),
    (
        lambda: F.ctc_loss(IN_TIME, SPOKEN, LENGTHS, (2, 2), blank=-1),
        ValueError,
        "ctc_loss: `blank` must be a symbol in [0, 3), got -1",
    ),
    (
        lambda: F.ctc_loss(IN_TIME, SPOKEN, (5,), (2, 2)),
        ValueError,
        "ctc_loss: `input_lengths` must have shape (2,), got (1,)",
    ),
    (
        lambda: F.ctc_loss(IN_TIME, SPOKEN, LENGTHS, (1.5, 2)),
        TypeError,
        "ctc_loss: `target_lengths` must be an array of integers, got float32",
    ),
    (
        lambda: F.ctc_loss(IN_TIME, SPOKEN[:1], LENGTHS, (2, 2)),
        ValueError,
        "ctc_loss: `targets` must have shape (2, S), or hold all targets in one dimension, "
        "got (1, 2)",
    ),
    (
        lambda: F.ctc_loss(IN_TIME.swapaxes(0, 1), SPOKEN, LENGTHS, (2, 2)),
        ValueError,
        f"ctc_loss: `targets` must have shape ({len(IN_TIME)}, S), or hold all targets in one "
        "dimension, got (2, 2): `log_probs` is (T, N, C), so write `log_probs.swapaxes(0, 1)`",
    ),
    (
        lambda: F.ctc_loss(IN_TIME, SPOKEN[0], LENGTHS, (2, 2)),
        ValueError,
        "ctc_loss: `targets` must hold the 4 targets that `target_lengths` count, got (2,)",
    ),
    (
        lambda: F.ctc_loss(IN_TIME, SPOKEN, LENGTHS, (2, 2), 0, "avg"),
        ValueError,
        "ctc_loss: `reduction` must be 'none', 'mean' or 'sum', got 'avg'",
    ),
    (
        lambda: jaxloss.hinge_loss(X, Y),
        ValueError,
        "hinge_loss: `targets` must have `predictor_outputs`'s shape (2, 3), got (2,)",
    ),
    (
        lambda: jaxloss.perceptron_loss(INTEGERS, X),
        TypeError,
        "perceptron_loss: `predictor_outputs` must be a floating-point array, got int32",
    ),
    *(
        (
            lambda function=function: function(X, jnp.array([0, 1, 2])),
            ValueError,
            f"{function.__name__}: `labels` must have shape (2,), got (3,)",
        )
        for function in (
            jaxloss.multiclass_hinge_loss,
            jaxloss.multiclass_perceptron_loss,
            jaxloss.multiclass_sparsemax_loss,
            jaxloss.softmax_focal_loss_with_integer_labels,
        )
    ),
    (
        lambda: jaxloss.multiclass_hinge_loss(X[:, :0], Y),
        ValueError,
        "multiclass_hinge_loss: `scores` must have at least one class, got shape (2, 0)",
    ),
    (
        lambda: jaxloss.multiclass_sparsemax_loss(X, ONE),
        TypeError,
        "multiclass_sparsemax_loss: `labels` must be an array of integers, got float32",
    ),
    (
        lambda: jaxloss.make_fenchel_young_loss("logsumexp"),
        TypeError,
        "make_fenchel_young_loss: `max_fun` must be callable, got 'logsumexp'",
    ),
    (
        lambda: jaxloss.make_fenchel_young_loss(jax.nn.logsumexp)(X, WIDE),
        ValueError,
        "fenchel_young_loss: `targets` must have `scores`'s shape (2, 3), got (2, 4)",
    ),
    (
        lambda: jaxloss.make_fenchel_young_loss(jax.nn.logsumexp)(1.0, 1.0),
        ValueError,
        "fenchel_young_loss: `scores` must have shape (..., C), got ()",
    ),
    (
        lambda: jaxloss.sigmoid_focal_loss(X, X, alpha=1.5),
        ValueError,
        "sigmoid_focal_loss: `alpha` must be between 0 and 1, got 1.5",
    ),
    (
        lambda: jaxloss.softmax_focal_loss_with_integer_labels(X, Y, gamma=-1),
        ValueError,
        "softmax_focal_loss_with_integer_labels: `gamma` must be 0 or more, got -1",
    ),
    (
        lambda: jaxloss.poly_loss_cross_entropy(X, X, epsilon=X),
        ValueError,
        "poly_loss_cross_entropy: `epsilon` must be a number, got shape (2, 3)",
    ),
    (
        lambda: jaxloss.generalized_kl_divergence(X, WIDE),
        ValueError,
        "generalized_kl_divergence: `targets` must have `log_predictions`'s shape (2, 3), got",
    ),
    (
        lambda: jaxloss.ranking_softmax_loss(X, X, reduce_fn="mean"),
        TypeError,
        "ranking_softmax_loss: `reduce_fn` must be callable or None, got 'mean'",
    ),
    (
        lambda: jaxloss.ranking_softmax_loss(X, X, weights=jnp.ones(2)),
        ValueError,
        "ranking_softmax_loss: `weights` must broadcast to (2, 3), got (2,)",
    ),
    (
        lambda: jaxloss.cosine_distance(X, WIDE),
        ValueError,
        "cosine_distance: `targets` must broadcast with the shape (2, 3), got (2, 4)",
    ),
    (
        lambda: jaxloss.cosine_distance(X, X, epsilon=-1.0),
        ValueError,
        "cosine_distance: `epsilon` must be 0 or more, got -1.0",
    ),
    (
        lambda: jaxloss.dice_loss(X, WIDE),
        ValueError,
        "dice_loss: `targets` must have `predictions`'s shape (2, 3), got (2, 4)",
    ),
    (
        lambda: jaxloss.dice_loss(X, X, axis=-1),
        ValueError,
        "dice_loss: `axis` must leave the last dimension, the classes, alone, got -1",
    ),
    (
        lambda: jaxloss.tversky_loss(X, X, alpha=0.5, beta=-0.5),
        ValueError,
        "tversky_loss: `beta` must be 0 or more, got -0.5",
    ),
    (
        lambda: jaxloss.dice_loss(X, X, reduction="avg"),
        ValueError,
        "dice_loss: `reduction` must be 'mean', 'sum' or 'none', got 'avg'",
    ),
    (
        lambda: jaxloss.multiclass_generalized_dice_loss(X, X[0]),
        ValueError,
        "multiclass_generalized_dice_loss: `targets` must have `predictions`'s shape (2, 3), got",
    ),
    (
        lambda: jaxloss.ntxent(X[0], Y),
        ValueError,
        "ntxent: `embeddings` must have shape (N, D), got (3,)",
    ),
    (
        lambda: jaxloss.ntxent_per_example(X, jnp.zeros(3, int)),
        ValueError,
        "ntxent_per_example: `labels` must have shape (2,), got (3,)",
    ),
    (
        lambda: jaxloss.ntxent(X, Y, 0.0),
        ValueError,
        "ntxent: `temperature` must be positive, got 0.0",
    ),
    (
        lambda: jaxloss.info_nce_loss(X[0], X[0]),
        ValueError,
        "info_nce_loss: `x1` must have shape (N, D), got (3,)",
    ),
    (
        lambda: jaxloss.info_nce_loss(X, X[:, :2]),
        ValueError,
        "info_nce_loss: `x2` must have `x1`'s shape (2, 3), got (2, 2)",
    ),
    (
        lambda: jaxloss.info_nce_loss(X, X, temperature=0),
        ValueError,
        "info_nce_loss: `temperature` must be positive, got 0",
    ),
    (
        lambda: jaxloss.info_nce_loss(X, X, chunk_size=0),
        ValueError,
        "info_nce_loss: `chunk_size` must be an integer of 1 or more, got 0",
    ),
    (
        lambda: jaxloss.info_nce_loss(X, X, symmetric="no"),
        ValueError,
        "info_nce_loss: `symmetric` must be False or True, got 'no'",
    ),
    (
        lambda: jaxloss.sigmoid_contrastive_loss(X, X, scale=X, bias=0.0),
        ValueError,
        "sigmoid_contrastive_loss: `scale` must be a number, got shape (2, 3)",
    ),
    (
        lambda: jaxloss.sigmoid_contrastive_loss(X, X, scale=1.0, bias=0.0, where=X > 0),
        ValueError,
        "sigmoid_contrastive_loss: `where` must have the rank of `x1[:, 0]` and broadcast to its"
        " shape (2,), got (2, 3)",
    ),
    (
        lambda: jaxloss.supervised_contrastive_loss(X, X),
        TypeError,
        "supervised_contrastive_loss: `labels` must be an array of integers, got float32",
    ),
    (
        lambda: jaxloss.supervised_contrastive_loss(X, jnp.zeros(3, int)),
        ValueError,
        "supervised_contrastive_loss: `labels` must have shape (2,), got (3,)",
    ),
    (
        lambda: jaxloss.smooth_labels(X, 2),
        ValueError,
        "smooth_labels: `alpha` must be between 0 and 1, got 2",
    ),
    (
        lambda: jaxloss.ctc_loss_with_forward_probs(LOGITS[0], FRAMES[0], SPOKEN[0], PADDINGS[0]),
        ValueError,
        "ctc_loss_with_forward_probs: `logits` must have shape (B, T, C), got (5, 3)",
    ),
]


@pytest.mark.parametrize(("call", "error", "words"), STATIC, ids=[s[2][:60] for s in STATIC])
def test_static_error(call, error, words):
    with pytest.raises(error, match=re.escape(words)):
        call()
    with pytest.raises(error, match=re.escape(words)):
        jax.eval_shape(call)  # Inside a trace as well.
