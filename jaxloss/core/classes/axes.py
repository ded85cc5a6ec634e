"""The class dimensions of an array: sums, counts and indices over them, locally and over a mesh."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType

from jaxloss._base import checks, xla

AxisName = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class ClassAxes:
    """The class dimensions, and the mesh axis over which classes are spread, if they are.

    What is reduced keeps the dimensions with size 1.
    """

    axes: tuple[int, ...]
    axis_name: AxisName = None

    @classmethod
    def of(
        cls, axis: checks.Axis, scores: jax.Array, name: str, axis_name: AxisName = None
    ) -> ClassAxes:
        """The dimensions that a caller's `axis` names; `name` is that of the scores, for errors."""
        return cls(checks.axes(axis, scores, name), axis_name)

    def sum(self, x: jax.Array) -> jax.Array:
        return self.psum(jnp.sum(x, self.axes, keepdims=True))

    def psum(self, x: jax.Array) -> jax.Array:
        """The sum over the devices of what each has summed over its own classes."""
        return x if self.axis_name is None else lax.psum(x, self.axis_name)

    def max(self, x: jax.Array) -> jax.Array:
        x = xla.maximum(x, self.axes)
        return x if self.axis_name is None else lax.pmax(x, self.axis_name)

    def is_first_largest(self, x: jax.Array) -> jax.Array:
        """True at one largest entry of each example, the first of those along each axis.

        Found by its index: where XLA rounds x differently in two readings, perhaps no entry equals
        the maximum.
        """
        found = jnp.ones_like(x, bool)
        for axis in self.axes:
            index = jnp.argmax(x, axis, keepdims=True)
            shape = [size if a == axis else 1 for a, size in enumerate(x.shape)]
            found = found & (lax.broadcasted_iota(index.dtype, shape, axis) == index)
            x = jnp.max(x, axis, keepdims=True)
        return found

    def index_of_largest(self, scores: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """The flat index among all classes of each example's largest entry, the first of several.

        Without the class dimensions.
        """
        x, index, stride = scores, jnp.zeros((), dtype), 1
        for axis in reversed(self.axes):
            here = jnp.argmax(x, axis, keepdims=True).astype(dtype)
            faster = index
            if index.ndim:  # Chosen by comparison: a gather over a sharded axis is an error.
                place = lax.broadcasted_iota(dtype, index.shape, axis)
                faster = jnp.sum(jnp.where(place == here, index, 0), axis, keepdims=True)
            index = faster + here * jnp.asarray(stride, dtype)
            x, stride = jnp.max(x, axis, keepdims=True), stride * x.shape[axis]
        if self.axis_name is not None:
            index = index + jnp.asarray(self.first(scores), dtype)
            index = jnp.where(x < lax.pmax(x, self.axis_name), jnp.iinfo(dtype).max, index)
            index = lax.pmin(index, self.axis_name)
        return self.squeeze(index)

    def any(self, x: jax.Array) -> jax.Array:
        found = jnp.any(x, self.axes, keepdims=True)
        if self.axis_name is None:
            return found
        return lax.pmax(found.astype(jnp.int32), self.axis_name) > 0

    def squeeze(self, x: jax.Array) -> jax.Array:
        """One number for each example, without the axes of size 1, as a CPU wants it: see `xla`."""
        return jnp.squeeze(x, self.axes)

    def expand(self, x: jax.Array) -> jax.Array:
        return jnp.expand_dims(x, self.axes)

    def shape(self, like: jax.Array) -> tuple[int, ...]:
        """The sizes of the class dimensions, in the order in which they were named."""
        return tuple(like.shape[a] for a in self.axes)

    def size(self, like: jax.Array) -> int:
        """How many classes there are."""
        here = math.prod(self.shape(like))
        return here if self.axis_name is None else here * lax.axis_size(self.axis_name)

    def first(self, like: jax.Array) -> int | jax.Array:
        """The index among all classes of the first one here."""
        if self.axis_name is None:
            return 0
        return math.prod(self.shape(like)) * lax.axis_index(self.axis_name)

    def indices(self, like: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """The flat index of each class here, of size 1 in every other dimension."""
        flat = jnp.zeros((1,) * like.ndim, dtype)
        for axis in self.axes:
            shape = [1] * like.ndim
            shape[axis] = like.shape[axis]
            place = lax.broadcasted_iota(dtype, shape, axis)
            flat = flat * jnp.asarray(like.shape[axis], dtype) + place
        return flat

    def are_masked(self, where: jax.Array | None) -> bool:
        """Whether `where` tells the classes of an example apart, and not just examples."""
        return where is not None and any(where.shape[a] > 1 for a in self.axes)

    def may_gather(self, x: jax.Array) -> bool:
        """Whether entries can be gathered along the classes.

        A gather over several axes needs them last, and over a sharded one it is an error.
        """
        kinds = jax.typeof(x).sharding.mesh.axis_types
        return len(self.axes) == 1 and AxisType.Explicit not in kinds

    def count(self, scores: jax.Array, where: jax.Array | None) -> int | jax.Array:
        """How many classes take part in an example that does, at least 1."""
        if where is None or not self.are_masked(where):
            return max(self.size(scores), 1)
        repeats = math.prod(scores.shape[a] for a in self.axes if where.shape[a] == 1)
        return jnp.maximum(self.sum(repeats * where.astype(scores.dtype)), 1)

    def require(self, scores: jax.Array, name: str) -> None:
        """An error for scores without any class."""
        if 0 in self.shape(scores):
            checks.fail(ValueError, name, "have at least one class", f"shape {scores.shape}")
