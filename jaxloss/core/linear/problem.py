"""What is asked of a linear layer's outputs: examples, what they share, and how to compute it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import PrecisionLike
from jax.typing import ArrayLike

from jaxloss._base import checks, meshes
from jaxloss.core.classes.axes import AxisName, ClassAxes


class Rows(NamedTuple):
    """Examples, of one dimension N or of several; in blocks, (blocks, N of a block)."""

    inputs: tuple[jax.Array, ...]  # (N, D), for each layer.
    labels: jax.Array | None  # (N,) or (N, K) class indices, or (N, C) class probabilities.
    where: jax.Array | None  # (N,), which of them take part.

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inputs[0].shape[:-1]

    def present(self, x: jax.Array) -> jax.Array:
        """x, with 0 for the examples that take no part, so that logits need no mask."""
        where = self.where
        if where is None:
            return x
        return jnp.where(where.reshape(where.shape + (1,) * (x.ndim - where.ndim)), x, 0)


class Shared(NamedTuple):
    """What all examples have in common."""

    kernels: tuple[jax.Array, ...]  # (C, D), of each layer.
    biases: tuple[jax.Array | None, ...]  # (C,)
    terms: Any  # What else the objective is given: a tuple of numbers and of arrays (C,).


def along_last(x: jax.Array, like: jax.Array) -> jax.Array:
    """One number per class, with as many dimensions as `like` has."""
    return x.reshape((1,) * (like.ndim - 1) + x.shape)


# What becomes of (the logits of every layer, labels, terms laid along the classes, classes): one
# result per example, or a tuple of them. Those that are not floating-point have no derivative.
Objective = Callable[[tuple[jax.Array, ...], Any, Any, ClassAxes], Any]


class How(NamedTuple):
    """What shapes the computation."""

    objective: Objective
    axis_name: AxisName = None
    precision: PrecisionLike = None  # Of every product.
    blocks: int = 1  # Of a portion of the examples, whose products are made at once.
    # Of how many classes each device then makes the kernels' gradients at a time, if not of all.
    classes: int | None = None
    features: tuple[tuple[str, ...], ...] = ()  # Mesh axes that each kernel is gathered over.

    def whole(self, kernels: tuple[Any, ...]) -> tuple[Any, ...]:
        """The kernels, or tangents of some of them, with all of their features."""
        return tuple(
            lax.all_gather(x, axes, axis=1, tiled=True) if axes and x is not None else x
            for x, axes in zip(kernels, self.gathered(kernels), strict=True)
        )

    def gathered(self, kernels: tuple[Any, ...]) -> tuple[tuple[str, ...], ...]:
        """Over which mesh axes the features of each kernel are gathered."""
        return self.features or ((),) * len(kernels)

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes over which the classes are spread."""
        return meshes.named(self.axis_name)


def features_of_kernel(inputs: jax.Array, features_axis_name: AxisName) -> int:
    """How many of its features a device has."""
    count, axes = inputs.shape[-1], meshes.named(features_axis_name)
    devices = lax.axis_size(axes) if axes else 1
    if count % devices:
        rule = f"divide the {count} features of the inputs evenly"
        checks.fail(ValueError, "features_axis_name", rule, f"{axes} of {devices} devices")
    return count // devices


class Layer(NamedTuple):
    """A linear layer whose arguments are checked."""

    inputs: jax.Array  # (..., D)
    kernel: jax.Array  # (C, D)
    bias: jax.Array | None  # (C,)

    @classmethod
    def of(
        cls,
        inputs: ArrayLike,
        kernel: ArrayLike,
        bias: ArrayLike | None,
        features_axis_name: AxisName = None,
        prefix: str = "",
    ) -> Layer:
        """Checks what a caller passed as arguments whose names begin with `prefix`."""
        names = [prefix + name for name in ("inputs", "kernel", "bias")]
        inputs, kernel = checks.operands(**dict(zip(names, (inputs, kernel), strict=False)))
        if not inputs.ndim:
            checks.fail(ValueError, names[0], "have shape (..., D)", inputs.shape)
        features = features_of_kernel(inputs, features_axis_name)
        if kernel.ndim != 2 or kernel.shape[1] != features:
            is_flax = kernel.ndim == 2 and kernel.shape[0] == features
            hint = f": of a Flax layer write `{names[1]}.T`" if is_flax else ""
            got = f"{kernel.shape}{hint}"
            checks.fail(ValueError, names[1], f"have shape (C, {features})", got)
        if not len(kernel):
            checks.fail(ValueError, names[1], "hold a row for at least one class", kernel.shape)
        layer = cls(inputs, kernel, None)
        return layer._replace(bias=layer.per_class(names[2], bias))

    @property
    def wide(self) -> jax.Array:
        """A 0 in the dtype of all that is no operand of a product."""
        return jnp.zeros((), checks.wide(self.inputs.dtype))

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.inputs.shape[:-1]

    def per_class(self, name: str, value: ArrayLike | None) -> jax.Array | None:
        """One number for each class."""
        value, shape = checks.follower(name, value, self.wide), (len(self.kernel),)
        if value is not None and value.shape != shape:
            checks.fail(ValueError, name, f"have shape {shape}", value.shape)
        return value

    def mask(self, where: ArrayLike | None) -> jax.Array | None:
        """Which of the examples take part."""
        where = checks.mask(where, "inputs", self.inputs)
        if where is None:
            return None
        if where.shape[-1] != 1:
            checks.fail(ValueError, "where", "have size 1 along the features", where.shape)
        return jnp.broadcast_to(where[..., 0], self.batch_shape)

    def known(
        self,
        labels: jax.Array,
        where: jax.Array | None,
        axis_name: AxisName,
    ) -> jax.Array:
        """The labels, on the condition that each is one of the classes."""
        classes = len(self.kernel)
        if axis_name is not None:
            classes = classes * lax.axis_size(axis_name)
        rule = f"be a class in [0, {classes}) that takes part"
        if where is not None:
            where = where.reshape(where.shape + (1,) * (labels.ndim - where.ndim))
        checks.require((labels >= 0) & (labels < classes), "labels", rule, where)
        return labels
