"""torch's conventions, written once: argument names, the class axis, legacy reductions, weights."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._base import checks, elementwise, xla
from jaxloss._base.call import public
from jaxloss._base.reduction import Reduction, divide
from jaxloss.core.classes.axes import ClassAxes
from jaxloss.core.classes.labels import Labels, find, label_weights

P = ParamSpec("P")
R = TypeVar("R")

# What torch calls the arguments of the core losses.
NAMES = {
    "predictions": "input",
    "log_predictions": "input",
    "logits": "input",
    "log_probs": "input",
    "probabilities": "input",
    "scores": "input",
    "distances": "input",
    "scores1": "input1",
    "scores2": "input2",
    "anchors": "anchor",
    "positives": "positive",
    "negatives": "negative",
    "targets": "target",
    "log_targets": "target",
    "labels": "target",
    "variances": "var",
    "class_weights": "weight",
    "axis": "dim",
}


def torch_function(
    *,
    static: tuple[str, ...] = (),
    labels: tuple[str, ...] = (),
    domain: Mapping[str, checks.Domain] | None = None,
    absent_at_default: tuple[str, ...] = (),
    names: Mapping[str, str] | None = None,
    name: str | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """`public` for a function of torch: its names in errors, and its legacy arguments.

    A function that declares `size_average` and `reduce` never sees them: they warn and become a
    `reduction` before it is called, which may then be what it already compiled for.
    """

    def decorate(fun: Callable[P, R]) -> Callable[P, R]:
        legacy = [a for a in ("size_average", "reduce") if a in inspect.signature(fun).parameters]
        compiled = public(
            static=("reduction", *legacy, *static),
            labels=labels,
            domain=domain,
            absent_at_default=absent_at_default,
            names={**NAMES, **(names or {})},
            name=name,
        )(fun)
        if not legacy:
            return compiled

        @functools.wraps(fun)
        def call(*args, size_average=None, reduce=None, **kwargs):
            if size_average is not None or reduce is not None:
                kwargs["reduction"] = legacy_reduction(size_average, reduce, stacklevel=3)
            return compiled(*args, **kwargs)

        return call  # type: ignore[return-value]  # The signature is the wrapped function's.

    return decorate


def legacy_reduction(
    size_average: bool | None, reduce: bool | None, *, stacklevel: int
) -> Reduction:
    """The `reduction` that torch's two old flags stand for."""
    reduction: Reduction = "mean" if size_average is None or size_average else "sum"
    if reduce is not None and not reduce:
        reduction = "none"
    message = f"size_average and reduce are deprecated, please use reduction={reduction!r} instead"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)
    return reduction


def reduced(
    losses: jax.Array, reduction: str, weights: jax.Array | None = None, *, batchmean: bool = False
) -> jax.Array:
    """Reduces as torch does: the mean of nothing is NaN, with gradient 0.

    The weights, which are in the losses already, make up the mean's denominator.
    """
    allowed = ("none", "mean", "sum", "batchmean") if batchmean else ("none", "mean", "sum")
    checks.one_of("reduction", reduction, allowed)
    if reduction == "none":
        return losses
    total = jnp.sum(losses)
    if reduction == "sum":
        return total
    if reduction == "batchmean":
        count = jnp.asarray(losses.shape[0] if losses.ndim else 1, losses.dtype)
    elif weights is None:
        count = jnp.asarray(losses.size, losses.dtype)
    else:
        count = jnp.sum(weights)
    return xla.nan_where(count == 0, divide(total, count))


def weighted(losses: jax.Array, weight: ArrayLike | None) -> tuple[jax.Array, jax.Array | None]:
    """The losses times one weight per element, and those weights."""
    weight = checks.follower("weight", weight, losses)
    if weight is None:
        return losses, None
    checks.same_shape(input=losses, weight=weight)
    return elementwise.product(weight, losses), weight


def class_dimension(input: ArrayLike, *, most: int | None = None) -> int:
    """torch's class axis: the first of an unbatched input, else the second."""
    shape = jnp.shape(input)
    if not shape or (most and len(shape) > most):
        shapes = "(C) or (N, C)" if most else "(C), (N, C) or (N, C, d1, ..., dK)"
        checks.fail(ValueError, "input", f"have shape {shapes}", shape)
    return 0 if len(shape) == 1 else 1


class ClassTargets(NamedTuple):
    """Scores and the class indices of their examples, without those with `ignore_index`."""

    scores: jax.Array  # Halves as they are.
    classes: ClassAxes
    found: Labels
    where: jax.Array
    weights: jax.Array  # Of each label's class; 0 where the example does not take part.


def class_targets(
    input: ArrayLike, target: ArrayLike, weight: ArrayLike | None, ignore_index: ArrayLike
) -> ClassTargets:
    dim = class_dimension(input)
    (input,) = checks.operands(input=input)
    shape = input.shape[:dim] + input.shape[dim + 1 :]
    target, hint = checks.array("target", target), ""
    if target.shape != shape and target.shape == input.shape[:-1]:
        hint = f": the classes stand in axis {dim}, so write `jnp.moveaxis(input, -1, {dim})`"
    labels = checks.labels("target", target, shape, hint)
    where = jnp.expand_dims(present(target, ignore_index), dim)
    classes = ClassAxes((dim,))
    found = find(labels, input, classes, where, names=("input", "target"))
    weights = label_weights(weight, input, found, classes)
    return ClassTargets(input, classes, found, where, weights)


class Answers(NamedTuple):
    """Targets in the shape of the scores: of each element whether it is of its class."""

    targets: jax.Array
    where: jax.Array


def answers(input: ArrayLike, target: ArrayLike, ignore_index: ArrayLike) -> Answers | None:
    """Targets that are no class indices. Those of a single class may leave its axis out."""
    dim, shape = class_dimension(input), jnp.shape(input)
    target = checks.array("target", target)
    if shape[dim] == 1 and target.shape == shape[:dim] + shape[dim + 1 :]:
        target = jnp.expand_dims(target, dim)
    if target.shape != shape:
        return None
    if target.dtype == bool:
        target = target.astype(jnp.int32)
    return Answers(target, present(target, ignore_index))


def present(target: jax.Array, ignore_index: ArrayLike) -> jax.Array:
    """Whether each label, in the dtype in which it came, is another than `ignore_index`."""
    if ignore_index is None:
        checks.fail(TypeError, "ignore_index", "be an integer", None)
    ignored = jnp.asarray(ignore_index)
    if ignored.ndim or not jnp.issubdtype(ignored.dtype, jnp.integer):
        checks.fail(TypeError, "ignore_index", "be an integer", ignored.aval.str_short())
    if not jnp.issubdtype(target.dtype, jnp.integer):
        return target != ignored.astype(target.dtype)
    if ignored.dtype == target.dtype:
        return target != ignored
    # A cast to either's dtype would take one number for another: 2^32 - 1 is not -1.
    wide = jnp.uint64 if 8 in (target.dtype.itemsize, ignored.dtype.itemsize) else jnp.uint32
    same_bits = target.astype(wide) == ignored.astype(wide)
    return ~same_bits | ((target < 0) != (ignored < 0))
