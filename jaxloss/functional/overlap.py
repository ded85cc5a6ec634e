"""The Dice loss in torch's conventions, for the class `DiceLoss`; torch has no such function."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._base import checks, xla
from jaxloss._base.reduction import Reduction
from jaxloss.core import overlap as core
from jaxloss.core.classes.axes import ClassAxes
from jaxloss.core.classes.labels import weighted
from jaxloss.functional._torch import answers, class_targets, reduced, torch_function


@torch_function(
    static=("ignore_background", "batch"),
    labels=("target", "ignore_index"),
    domain={"smooth": checks.NON_NEGATIVE},
    absent_at_default=("ignore_index",),
    name="DiceLoss",
)
def dice_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    smooth: ArrayLike = 1.0,
    batch: bool = False,
    ignore_background: bool = False,
    weight: ArrayLike | None = None,
    ignore_index: ArrayLike = -100,
    reduction: Reduction = "mean",
) -> jax.Array:
    """See `jaxloss.modules.DiceLoss`."""
    (input,) = checks.arrays(input=input)
    if input.ndim < 2:
        checks.fail(ValueError, "input", "have shape (N, C) or (N, C, d1, ..., dK)", input.shape)
    found = answers(input, target, ignore_index)
    if found is None:
        _, _, labels, where, _ = class_targets(input, target, None, ignore_index)
        # A bad label is of no class, and would count as a wrong answer and not as a mistake.
        targets = xla.nan_where(labels.bad, labels.hot.astype(input.dtype))
    else:
        targets, where = found
    arrays = (jnp.moveaxis(x, 1, -1) for x in (input, targets, where))
    if found is not None:  # Each class is a single one.
        arrays = (x[..., None] for x in arrays)
    predictions, targets, where = arrays
    counted = tuple(range(0 if batch else 1, input.ndim - 1))
    losses = core.dice_loss(
        predictions, targets, smooth=smooth, reduction="none", axis=counted, where=where
    )
    taken = jnp.any(where, counted)
    if found is not None:
        losses, taken = losses[..., 0], taken[..., 0]
    taken = jnp.broadcast_to(taken, losses.shape)
    losses = weighted(losses, weight, ClassAxes((losses.ndim - 1,)))
    if ignore_background:
        first = int(input.shape[1] > 1)
        losses, taken = losses[..., first:], taken[..., first:]
    return reduced(losses, reduction, taken.astype(losses.dtype))
