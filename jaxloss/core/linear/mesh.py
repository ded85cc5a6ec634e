"""How the arrays lie on a mesh: with explicit axes, each device works on what it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxloss._base import meshes
from jaxloss.core.linear.problem import How, Rows, Shared

Axes = tuple[str, ...]


class Layout(NamedTuple):
    """Over which mesh axes the dimensions are spread."""

    examples: tuple[Axes, ...]  # Of each dimension of examples.
    classes: Axes
    features: tuple[Axes, ...]  # Of each kernel, where examples are spread over them as well.

    def specs(self, rows: Rows, shared: Shared) -> Any:
        """A specification in the place of each array."""

        def of_examples(x: jax.Array, behind: Axes = ()) -> Any:
            return PartitionSpec(*self.examples, *[behind][: x.ndim - len(self.examples)])

        def of_classes(x: jax.Array) -> Any:
            return PartitionSpec(*[self.classes][: x.ndim])

        specs = jax.tree.map(of_examples, rows)
        if rows.labels is not None and jnp.issubdtype(rows.labels.dtype, jnp.floating):
            specs = specs._replace(labels=of_examples(rows.labels, self.classes))
        kernels: Any = tuple(PartitionSpec(self.classes, axes) for axes in self.features)
        return specs, jax.tree.map(of_classes, shared)._replace(kernels=kernels)


def by_device(
    f: Callable[[Rows, Shared, How, Axes], Any],
    rows: Rows,
    shared: Shared,
    how: How,
    outputs: Callable[[PartitionSpec], Any],
) -> Any:
    """f(rows, shared, how, axes of the examples), for each device's part of the problem.

    The kernel's classes stay where they are, and so do the examples, except that those which
    share a mesh axis with the classes are gathered over it. Where there are two layers, the second
    is laid as the first. What comes out is laid as `outputs` says, given the specification of one
    number per example.
    """
    typed = [x for x in (*rows.inputs, *shared.kernels) if meshes.explicit_axes(x)[1]]
    if not typed:
        # Whoever holds other features of a kernel may hold the same examples: their gradients are
        # then those of one loss for each device.
        gathered = frozenset(axis for axes in how.features for axis in axes)
        known = gathered & meshes.of_varying(shared.kernels)
        return f(meshes.varying_over(rows, known), shared, how, ())
    layout = _layout(rows, shared)

    def part(rows, shared):
        classes = (*how.axes, *layout.classes) or None
        inner = how._replace(axis_name=classes, features=layout.features)
        return f(rows, shared, inner, tuple(a for axes in layout.examples for a in axes))

    specs, out = layout.specs(rows, shared), outputs(PartitionSpec(*layout.examples))
    found = meshes.by_device(part, (rows, shared), typed[0], specs, out)
    given = PartitionSpec(*jax.typeof(rows.inputs[0]).sharding.spec[: len(rows.shape)])
    return meshes.laid(found, meshes.explicit_axes(typed[0])[0], outputs(given))


def _layout(rows: Rows, shared: Shared) -> Layout:
    inputs, classes = rows.inputs[0], meshes.axes_of(shared.kernels[0], 0)
    examples = tuple(
        tuple(a for a in meshes.axes_of(inputs, d) if a not in classes)
        for d in range(len(rows.shape))
    )
    features = tuple(
        tuple(a for a in meshes.axes_of(kernel, 1) if any(a in axes for axes in examples))
        for kernel in shared.kernels
    )
    return Layout(examples, classes, features)
