"""The focal loss in torch's conventions, for the class `FocalLoss`; torch has no such function."""

from __future__ import annotations

import jax
from jax.typing import ArrayLike

from jaxloss._base import checks
from jaxloss._base.reduction import Reduction
from jaxloss.core import focal as core
from jaxloss.core.classes.axes import ClassAxes
from jaxloss.core.classes.labels import weighted
from jaxloss.functional._torch import (
    answers,
    class_dimension,
    class_targets,
    reduced,
    torch_function,
)


@torch_function(
    labels=("target", "ignore_index"),
    domain={"alpha": checks.FRACTION, "gamma": checks.NON_NEGATIVE},
    absent_at_default=("ignore_index",),
    name="FocalLoss",
)
def focal_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    alpha: ArrayLike | None = None,
    gamma: ArrayLike = 2.0,
    weight: ArrayLike | None = None,
    ignore_index: ArrayLike = -100,
    reduction: Reduction = "mean",
) -> jax.Array:
    """See `jaxloss.modules.FocalLoss`."""
    found = answers(input, target, ignore_index)
    if found is None:
        if alpha is not None:
            rule = "be None for class indices, which take `weight` instead"
            checks.fail(ValueError, "alpha", rule, "a number")
        scores, classes, _, where, _ = class_targets(input, target, weight, ignore_index)
        losses = core.softmax_focal_loss_with_integer_labels(
            scores, target, gamma=gamma, class_weights=weight, axis=classes.axes, where=where
        )
        taken = classes.squeeze(where)
    else:
        targets, taken = found
        (input,) = checks.arrays(input=input)
        alpha = None if alpha is None else checks.number("alpha", alpha, input)
        gamma = checks.number("gamma", gamma, input)
        losses = core.sigmoid_focal_loss(input, targets, alpha=alpha, gamma=gamma, where=taken)
        losses = weighted(losses, weight, ClassAxes((class_dimension(input),)))
    return reduced(losses, reduction, taken.astype(losses.dtype))
