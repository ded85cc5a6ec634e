"""torch's cross entropy of a linear layer's outputs, without the logits."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._base import checks, meshes
from jaxloss._base.reduction import Reduction
from jaxloss.core.classes.axes import AxisName
from jaxloss.core.linear import loss as core
from jaxloss.core.linear.examples import of_examples
from jaxloss.core.linear.problem import How, features_of_kernel
from jaxloss.functional._torch import present, reduced, torch_function


@torch_function(
    static=("chunk_size", "axis_name", "features_axis_name"),
    labels=("target", "ignore_index"),
    domain={"label_smoothing": checks.FRACTION},
    absent_at_default=("label_smoothing",),
    names={"inputs": "input", "kernel": "linear_weight", "bias": "linear_bias"},
)
def linear_cross_entropy(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    reduction: Reduction = "mean",
    ignore_index: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    chunk_size: int | None = None,
    axis_name: AxisName = None,
    features_axis_name: AxisName = None,
) -> jax.Array:
    """As torch.nn.functional.linear_cross_entropy, over what `jaxloss.linear_softmax_cross_entropy`
    is made of.

    The cross entropy of `input @ linear_weight.T + linear_bias`, without ever holding all of these
    logits. For "mean" and "sum" the gradient is computed along with the loss, with three matrix
    products in all.

    Differs from torch as `jaxloss.functional.cross_entropy` does; also every derivative exists, and
    `label_smoothing` and class probabilities need no extra memory. `chunk_size` replaces torch's
    `options`.

    Args:
      input: features, floating-point, (in) or (N, in).
      linear_weight: (C, in), or (C, d1, …, dK, in), which needs a batched input. The kernel of
        Flax's Dense or Linear is (in, C): pass its `.T`, even where C = in hides the difference.
      target: class indices, integer, (), (N) or (N, d1, …, dK); or class probabilities,
        floating-point, (C), (N, C) or (N, C, d1, …, dK).
      linear_bias: linear_weight's shape without `in`.
      weight: one weight per class, shape (C,).
      reduction: "none", "mean" or "sum". The mean divides by the sum of the targets' weights, and
        for class probabilities by the number of targets.
      ignore_index: the class index of targets that do not take part, -100 by default; not for class
        probabilities.
      label_smoothing: share of the target spread evenly over the classes, in [0, 1].
      chunk_size: bounds the memory, as in `jaxloss.linear_softmax_cross_entropy`.
      axis_name: inside `jax.shard_map`, the mesh axis over which the classes are sharded; targets
        are then global class indices, or the local part of the class probabilities, and
        `linear_weight`, `linear_bias` and `weight` the local part. The sum or mean is that of the
        device's own examples.
      features_axis_name: inside `jax.shard_map`, the mesh axis over which the features of
        `linear_weight` are sharded, as with FSDP; `input` has all of them.

    Returns:
      A scalar, or one loss per target for "none"; at least float32.

    Raises:
      TypeError: `input` is not floating-point, or `target` neither class indices nor
        floating-point probabilities.
      ValueError: the shapes, `label_smoothing` or `chunk_size` do not fit, `ignore_index` is given
        with probabilities, or the reduction is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import functional as F
      >>> features = jnp.array([[1.0, 2.0], [0.0, -1.0]])
      >>> embedding = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [-1.0, 0.0]])
      >>> print(f"{F.linear_cross_entropy(features, embedding, jnp.array([1, 3])):.4f}")
      0.8976

    Source:
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.linear_cross_entropy.html
    """
    input, linear_weight = checks.operands(input=input, linear_weight=linear_weight)
    if input.ndim not in (1, 2):
        checks.fail(ValueError, "input", "have shape (in) or (N, in)", input.shape)
    features = features_of_kernel(input, features_axis_name)
    if linear_weight.ndim < 2 or linear_weight.shape[-1] != features:
        rule = f"have shape (C, {features}) or (C, d1, ..., dK, {features})"
        is_flax = linear_weight.ndim == 2 and linear_weight.shape[0] == features
        hint = ": of a Flax layer write `linear_weight.T`" if is_flax else ""
        checks.fail(ValueError, "linear_weight", rule, f"{linear_weight.shape}{hint}")
    classes, *places = linear_weight.shape[:-1]
    if places and input.ndim == 1:
        shape = f"(N, {input.shape[-1]})"
        rule = f"have shape {shape}, since `linear_weight` has positions {tuple(places)}"
        checks.fail(ValueError, "input", rule, input.shape)
    if linear_bias is not None and jnp.shape(linear_bias) != (classes, *places):
        rule = f"have shape {(classes, *places)}"
        checks.fail(ValueError, "linear_bias", rule, jnp.shape(linear_bias))
    batch = input.shape[:-1]
    target = jnp.asarray(target)
    where = None
    if target.shape == (*batch, classes, *places):
        if not jnp.issubdtype(target.dtype, jnp.floating):
            rule = "be floating-point where it has the logits' shape, as class probabilities"
            checks.fail(TypeError, "target", rule, target.dtype)
        if ignore_index is not None:
            rule = "be None for class probabilities"
            checks.fail(ValueError, "ignore_index", rule, "a class index")
    else:
        where = present(target, -100 if ignore_index is None else ignore_index)
        target = checks.labels("target", target, (*batch, *places))

    def of_one_place(kernel, bias, labels, where):
        with checks.apart() as inner:
            rows, shared = core.problem(
                input,
                kernel,
                labels,
                bias=bias,
                where=None if where is None else where[..., None],
                class_weights=weight,
                label_smoothing=label_smoothing,
                axis_name=axis_name,
                features_axis_name=features_axis_name,
            )
        how = How(core.losses, axis_name, features=(meshes.named(features_axis_name),))
        problem, copies = (rows, shared, how, chunk_size), math.prod(places)
        if reduction == "none":
            return inner.checked(of_examples(*problem, copies=copies)), None
        return inner.checked(core.sum_and_weights(*problem, copies=copies))

    args = linear_weight, linear_bias, target, where
    if not places:
        losses, weights = of_one_place(*args)
    else:
        # One dimension for the places: of the kernel in the middle, of all others at the end.
        kernel = linear_weight.reshape(classes, -1, features)
        rest = (
            None if x is None else x.reshape(*x.shape[: x.ndim - len(places)], -1)
            for x in (None if linear_bias is None else jnp.asarray(linear_bias), target, where)
        )
        args = kernel, *rest
        axes = tuple(
            None if x is None else axis for x, axis in zip(args, (1, -1, -1, -1), strict=True)
        )
        losses, weights = jax.vmap(of_one_place, axes, -1)(*args)
    if reduction == "none":
        return losses.reshape(*batch, *places)
    return reduced(losses, reduction, weights)
