"""How far predicted and true regions overlap: Dice, Tversky, and the generalised Dice loss."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._base import checks, elementwise, xla
from jaxloss._base.call import public
from jaxloss._base.reduction import divide
from jaxloss.core.classes.axes import ClassAxes
from jaxloss.core.classes.labels import weighted
from jaxloss.core.classes.softmax import softmax

Reduction = Literal["mean", "sum", "none"]

_DOMAIN = {name: checks.NON_NEGATIVE for name in ("smooth", "alpha", "beta")}


@public(
    static=("apply_softmax", "reduction", "ignore_background", "axis"),
    domain=_DOMAIN,
)
def dice_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    class_weights: ArrayLike | None = None,
    smooth: ArrayLike = 1.0,
    alpha: ArrayLike = 0.5,
    beta: ArrayLike = 0.5,
    apply_softmax: bool = True,
    reduction: Reduction = "mean",
    ignore_background: bool = False,
    axis: checks.Axis = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Dice loss: what predicted and true regions do not have in common.

    loss_c = (α FP + β FN) / (TP + α FP + β FN + smooth), with TP = Σ p t, FP = Σ p (1 - t) and
    FN = Σ (1 - p) t over the pixels; then the mean over the classes. For α = β = ½ loss_c is 1
    minus the soft Dice coefficient.

    With `smooth` 0, a class that is neither present nor predicted has loss 0.

    Args:
      predictions: floating-point array (N, ..., C), logits. p is their softmax over the last
        dimension, or with a single class their sigmoid.
      targets: 1 where a pixel is of the class and 0 elsewhere, or probabilities, in the same shape.
        One of the two may leave out a last dimension of size 1.
      class_weights: factors of the losses of the classes, shape (C,).
      smooth: added to the numerator and the denominator of the coefficient, 0 or more.
      alpha: α, the weight of false positives, 0 or more.
      beta: β, the weight of false negatives, 0 or more.
      apply_softmax: whether `predictions` are logits; if not they are probabilities.
      reduction: "mean" or "sum" over the classes, or "none".
      ignore_background: whether class 0 is left out, unless it is the only one.
      axis: the dimension or dimensions of the pixels, in the shape with the classes; by default
        all but the first and the last.
      where: boolean, of the rank of `predictions` and broadcastable to it: the pixels, or classes
        of pixels, that take part. A class with none has loss 0, and the mean does not count it.

    Returns:
      One loss per example, or with "none" one per example and class, (N, C); at least float32.

    Raises:
      TypeError: `predictions` is not floating-point.
      ValueError: the shapes or `axis` do not fit, or `smooth`, `alpha` or `beta` is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> logits = jnp.array([[[2.0, -1.0], [0.5, 0.0], [-1.0, 3.0]]])  # Three pixels.
      >>> targets = jnp.array([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
      >>> jnp.set_printoptions(precision=4)
      >>> print(jaxloss.dice_loss(logits, targets))
      [0.0899]

    Source: Milletari et al., V-Net, arXiv:1606.04797.
    """
    regions = _regions(predictions, targets, where, axis, alpha, beta, is_logits=apply_softmax)
    losses = regions.losses(smooth)
    losses = weighted(losses, class_weights, ClassAxes((losses.ndim - 1,)))
    present = regions.present
    if ignore_background:
        losses, present = _without_background(losses, present)
    return _over_classes(losses, present, reduction)


@public(
    static=("apply_softmax", "reduction", "ignore_background", "axis"),
    domain=_DOMAIN,
)
def tversky_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    alpha: ArrayLike,
    beta: ArrayLike,
    class_weights: ArrayLike | None = None,
    smooth: ArrayLike = 1.0,
    apply_softmax: bool = True,
    reduction: Reduction = "mean",
    ignore_background: bool = False,
    axis: checks.Axis = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Tversky loss: the Dice loss with separate weights for false alarms and misses.

    loss_c = (α FP + β FN) / (TP + α FP + β FN + smooth), as in `dice_loss`. α = β = ½ is Dice,
    α = β = 1 is Jaccard, and β above α finds more of what is rare.

    Args:
      predictions: as in `dice_loss`.
      targets: as in `dice_loss`.
      alpha: α, the weight of false positives, 0 or more.
      beta: β, the weight of false negatives, 0 or more.
      class_weights: as in `dice_loss`.
      smooth: as in `dice_loss`.
      apply_softmax: as in `dice_loss`.
      reduction: as in `dice_loss`.
      ignore_background: as in `dice_loss`.
      axis: as in `dice_loss`.
      where: as in `dice_loss`.

    Returns:
      One loss per example, or with "none" one per example and class, (N, C); at least float32.

    Raises:
      TypeError: `predictions` is not floating-point, or `alpha` or `beta` is missing.
      ValueError: the shapes or `axis` do not fit, or `smooth`, `alpha` or `beta` is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> logits = jnp.array([[[2.0, -1.0], [0.5, 0.0], [-1.0, 3.0]]])  # Three pixels.
      >>> targets = jnp.array([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
      >>> jnp.set_printoptions(precision=4)
      >>> print(jaxloss.tversky_loss(logits, targets, alpha=0.3, beta=0.7))
      [0.0856]

    Source: Salehi et al., Tversky loss function for image segmentation, arXiv:1706.05721.
    """
    return dice_loss(
        predictions,
        targets,
        class_weights=class_weights,
        smooth=smooth,
        alpha=alpha,
        beta=beta,
        apply_softmax=apply_softmax,
        reduction=reduction,
        ignore_background=ignore_background,
        axis=axis,
        where=where,
    )


@public(static=("apply_sigmoid",), domain={"smooth": checks.NON_NEGATIVE})
def binary_dice_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    smooth: ArrayLike = 1.0,
    apply_sigmoid: bool = True,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Dice loss of a single region in each example.

    loss = 1 - (2 Σ p t + 2 smooth) / (Σ p + Σ t + 2 smooth), with p = σ(x), over all dimensions but
    the first.

    Args:
      predictions: floating-point array (N, ...), or (N, ..., 1), logits.
      targets: 1 for the pixels of the region and 0 elsewhere, in the same shape, except that one
        of the two may leave out a last dimension of size 1.
      smooth: as in `dice_loss`.
      apply_sigmoid: whether `predictions` are logits; if not they are probabilities.
      where: boolean, of the rank of `predictions` and broadcastable to it: the pixels that take
        part.

    Returns:
      One loss per example, (N,); at least float32.

    Raises:
      TypeError: `predictions` is not floating-point.
      ValueError: the shapes do not fit, or `smooth` is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> probabilities, targets = jnp.array([[0.75, 0.25, 0.5]]), jnp.array([[1.0, 0.0, 1.0]])
      >>> print(jaxloss.binary_dice_loss(probabilities, targets, apply_sigmoid=False).round(4))
      [0.1818]

    Source: Milletari et al., V-Net, arXiv:1606.04797.
    """
    shape = checks.array("predictions", predictions).shape
    if jnp.ndim(targets) == len(shape) and shape[-1:] != (1,):
        predictions, targets = (jnp.expand_dims(x, -1) for x in (predictions, targets))
        where = where if where is None else jnp.expand_dims(where, -1)
    return dice_loss(predictions, targets, smooth=smooth, apply_softmax=apply_sigmoid, where=where)


@public(
    static=("apply_softmax", "ignore_background", "reduction"),
    domain={"smooth": checks.NON_NEGATIVE},
)
def multiclass_generalized_dice_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    smooth: ArrayLike = 1.0,
    apply_softmax: bool = True,
    ignore_background: bool = False,
    reduction: Reduction = "mean",
    where: ArrayLike | None = None,
) -> jax.Array:
    """Dice loss with each class weighted by the inverse square of its frequency.

    loss = mean over examples and classes of w_c loss_c, with loss_c as in `dice_loss` and
    w_c = 1 / f_c² scaled to Σ w_c = C, where f_c = Σ t_c over the whole batch.

    A class that is nowhere has weight 0.

    Args:
      predictions: floating-point array (N, ..., C), logits.
      targets: as in `dice_loss`, in the same shape.
      smooth: as in `dice_loss`.
      apply_softmax: as in `dice_loss`.
      ignore_background: as in `dice_loss`.
      reduction: "mean" or "sum" over examples and classes, or "none".
      where: as in `dice_loss`; what it excludes is not counted in f_c either.

    Returns:
      A scalar, or with "none" one loss per example and class, (N, C); at least float32.

    Raises:
      TypeError: `predictions` is not floating-point.
      ValueError: the shapes do not fit, or `smooth` is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> logits = jnp.array([[[2.0, -1.0], [0.5, 0.0], [-1.0, 3.0]]])  # Three pixels.
      >>> targets = jnp.array([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
      >>> print(f"{jaxloss.multiclass_generalized_dice_loss(logits, targets):.4f}")
      0.0962

    Source: Sudre et al., Generalised Dice overlap, arXiv:1707.03237.
    """
    regions = _regions(
        predictions, targets, where, None, 0.5, 0.5, is_logits=apply_softmax, channel_too=False
    )
    losses, present = regions.losses(smooth), regions.present
    losses = elementwise.product(jnp.broadcast_to(regions.rarity(), losses.shape), losses)
    if ignore_background:
        losses, present = _without_background(losses, present)
    if reduction == "none":
        return losses
    return _over_classes(losses.ravel(), present if present is None else present.ravel(), reduction)


@dataclasses.dataclass(frozen=True)
class _Regions:
    """Sums over the pixels, one for each example and class."""

    right: jax.Array  # Σ p t
    wrong: jax.Array  # Σ α p (1 - t) + β (1 - p) t
    sizes: jax.Array  # Σ t
    present: jax.Array | None  # Where anything takes part.

    def losses(self, smooth: ArrayLike) -> jax.Array:
        """1 less the coefficient, without the subtraction, which cancels where that is good."""
        smooth = checks.number("smooth", smooth, self.right)
        return divide(self.wrong, self.right + self.wrong + smooth)

    def rarity(self) -> jax.Array:
        """The inverse square of how often each class is there in all examples, C in all."""
        sizes = self.sizes.reshape(-1, self.sizes.shape[-1]).sum(0)
        absent = sizes == 0
        sizes = jnp.where(absent, 1, sizes)
        # Relative to the rarest, or squares and their inverses could overflow.
        least = jnp.min(jnp.where(absent, jnp.inf, lax.stop_gradient(sizes)), initial=jnp.inf)
        least = jnp.where(least == jnp.inf, 1, least)
        weights = jnp.where(absent, 0, jnp.square(least / sizes))
        count = sizes.shape[0]
        if self.present is not None:
            count = jnp.sum(self.present.reshape(-1, count).any(0)).astype(sizes.dtype)
        return divide(count * weights, jnp.sum(weights))


def _regions(
    predictions: ArrayLike,
    targets: ArrayLike,
    where: ArrayLike | None,
    axis: checks.Axis,
    alpha: ArrayLike,
    beta: ArrayLike,
    *,
    is_logits: bool,
    channel_too: bool = True,
) -> _Regions:
    """The sums of checked arguments."""
    predictions, targets = checks.arrays(predictions=predictions, targets=targets)
    if channel_too and predictions.ndim == targets.ndim - 1:
        predictions = predictions[..., None]
        where = where if where is None else jnp.expand_dims(where, -1)
    elif channel_too and targets.ndim == predictions.ndim - 1:
        targets = targets[..., None]
    checks.same_shape(predictions=predictions, targets=targets)
    if not predictions.ndim:
        checks.fail(ValueError, "predictions", "have shape (N, ..., C)", predictions.shape)
    classes = ClassAxes((predictions.ndim - 1,))
    classes.require(predictions, "predictions")
    pixels = range(1, predictions.ndim - 1)
    axes = tuple(pixels) if axis is None else checks.axes(axis, predictions, "predictions")
    if classes.axes[0] in axes:
        checks.fail(ValueError, "axis", "leave the last dimension, the classes, alone", axis)
    where = checks.mask(where, "predictions", predictions)
    checks.require((targets >= 0) & (targets <= 1), "targets", "be probabilities in [0, 1]", where)
    targets = elementwise.masked(where, targets)
    p, others = _probabilities(predictions, where, classes, is_logits)
    alpha, beta = checks.number("alpha", alpha, p), checks.number("beta", beta, p)

    parts = p * targets, alpha * p * (1 - targets) + beta * others * targets
    parts = tuple(elementwise.masked(where, x) for x in parts)
    right, wrong = (jnp.squeeze(x, axes) for x in xla.sums_at_once(parts, axes))
    present = None
    if where is not None:
        present = jnp.any(jnp.broadcast_to(where, predictions.shape), axes)
    return _Regions(right, wrong, jnp.sum(targets, axes), present)


def _probabilities(
    predictions: jax.Array, where: jax.Array | None, classes: ClassAxes, is_logits: bool
) -> tuple[jax.Array, jax.Array]:
    """p and 1 - p, both exact where they are small."""
    single = predictions.shape[-1] == 1
    if is_logits and not single:
        return softmax(predictions, where, classes)
    predictions = elementwise.masked(where, predictions)
    if is_logits:
        return lax.logistic(predictions), lax.logistic(-predictions)
    known = (predictions >= 0) & (predictions <= 1)
    checks.require(known, "predictions", "be probabilities in [0, 1]")
    if not single:
        sums = classes.sum(predictions)
        checks.require(jnp.abs(sums - 1) < 1e-3, "predictions", "sum to 1 over the classes", where)
    return predictions, 1 - predictions


def _without_background(
    losses: jax.Array, present: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """The losses of all classes but the first, where there are others."""
    first = int(losses.shape[-1] > 1)
    return losses[..., first:], None if present is None else present[..., first:]


def _over_classes(losses: jax.Array, present: jax.Array | None, reduction: str) -> jax.Array:
    """The losses over the last dimension; a mean counts what takes part."""
    checks.one_of("reduction", reduction, ("mean", "sum", "none"))
    if reduction == "none":
        return losses
    total = jnp.sum(losses, -1)
    if reduction == "sum":
        return total
    if present is None:
        return divide(total, jnp.asarray(losses.shape[-1], losses.dtype))
    return divide(total, jnp.sum(present.astype(losses.dtype), -1))
