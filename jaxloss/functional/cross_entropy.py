"""torch's cross entropy: class indices or class probabilities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._base import checks
from jaxloss._base.reduction import Reduction
from jaxloss.core import cross_entropy as core
from jaxloss.functional._torch import class_dimension, class_targets, reduced, torch_function


@torch_function(
    labels=("target", "ignore_index"),
    domain={"label_smoothing": checks.FRACTION},
    absent_at_default=("label_smoothing", "ignore_index"),
)
def cross_entropy(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    size_average: bool | None = None,
    ignore_index: ArrayLike = -100,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    label_smoothing: ArrayLike = 0.0,
) -> jax.Array:
    """As torch.nn.functional.cross_entropy, over `jaxloss.softmax_cross_entropy` and
    `jaxloss.softmax_cross_entropy_with_integer_labels`.

    Differs from torch: a target outside [0, C) that is not `ignore_index` gives NaN for that
    example instead of an error; when nothing takes part the mean is NaN, but its gradient is 0;
    confident predictions keep their accuracy.

    Args:
      input: logits, floating-point, (C), (N, C) or (N, C, d1, …, dK).
      target: class indices, integer, (), (N) or (N, d1, …, dK); or class probabilities,
        floating-point, in the shape of `input`.
      weight: one weight per class, shape (C,).
      size_average: deprecated, see `reduction`.
      ignore_index: the class index of examples that do not take part; not for class
        probabilities.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum". The mean divides by the sum of the targets' weights, and
        for class probabilities by the number of examples.
      label_smoothing: share of the target spread evenly over the classes, in [0, 1].

    Returns:
      A scalar, or one loss per example for "none"; at least float32.

    Raises:
      TypeError: `input` is not floating-point, or `target` neither class indices nor
        floating-point probabilities.
      ValueError: the shapes do not fit, `label_smoothing` is out of range, the reduction is unknown
        or `ignore_index` is given for class probabilities.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import functional as F
      >>> jnp.set_printoptions(precision=4)
      >>> logits = jnp.array([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]])
      >>> print(F.cross_entropy(logits, jnp.array([0, 1]), reduction="none"))
      [0.2761 2.9518]
      >>> print(f"{F.cross_entropy(logits, jnp.array([0, -100]), label_smoothing=0.1):.4f}")
      0.3995

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.cross_entropy.html
    """
    dim = class_dimension(input)
    target = jnp.asarray(target)
    if target.shape == jnp.shape(input):
        if not jnp.issubdtype(target.dtype, jnp.floating):
            rule = "be floating-point where it has `input`'s shape, as class probabilities"
            checks.fail(TypeError, "target", rule, target.dtype)
        if not (isinstance(ignore_index, int) and ignore_index == -100):
            rule = "be left at -100 for class probabilities"
            checks.fail(ValueError, "ignore_index", rule, "another class index")
        losses = core.softmax_cross_entropy(
            input, target, axis=dim, class_weights=weight, label_smoothing=label_smoothing
        )
        return reduced(losses, reduction)
    logits, classes, found, where, weights = class_targets(input, target, weight, ignore_index)
    terms = core.Terms.of(logits, classes, weight, label_smoothing)
    losses = core.losses_of_labels(logits, found, where, terms, classes)
    return reduced(losses, reduction, weights)
