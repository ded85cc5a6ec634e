"""How the arrays lie on a mesh: by explicit axes each device works on what it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.sharding import PartitionSpec

from jaxloss._base import meshes
from jaxloss.core.linear.problem import How, Rows, Shared

Axes = tuple[str, ...]


class Layout(NamedTuple):
    """Over which mesh axes the dimensions are spread."""

    examples: tuple[Axes, ...]  # Of each dimension of examples.
    classes: Axes
    features: Axes  # Of the kernel, where examples are spread over them as well.

    def specs(self, rows: Rows, shared: Shared) -> Any:
        """A specification in the place of each array."""

        def of_examples(x: jax.Array, behind: Axes = ()) -> Any:
            return PartitionSpec(*self.examples, *[behind][: x.ndim - len(self.examples)])

        def of_classes(x: jax.Array) -> Any:
            return PartitionSpec(*[self.classes][: x.ndim])

        labels = of_examples(rows.labels, self.classes)
        rows = jax.tree.map(of_examples, rows)._replace(labels=labels)
        kernel: Any = PartitionSpec(self.classes, self.features)
        return rows, jax.tree.map(of_classes, shared)._replace(kernel=kernel)


def by_device(
    f: Callable[[Rows, Shared, How, Axes], Any],
    rows: Rows,
    shared: Shared,
    how: How,
    outputs: Callable[[PartitionSpec], Any],
) -> Any:
    """f(rows, shared, how, axes of the examples), for each device's part of the problem.

    The kernel's classes stay where they are, and so do the examples, except that those which
    share a mesh axis with the classes are gathered over it. What comes out is laid as `outputs`
    says, given the specification of one number per example.
    """
    typed = [x for x in (rows.inputs, shared.kernel) if meshes.explicit_axes(x)[1]]
    if not typed:
        return f(rows, shared, how, ())
    layout = _layout(rows, shared)

    def part(rows, shared):
        if layout.features:  # Here, so that devices add up and scatter its gradient at once.
            whole = lax.all_gather(shared.kernel, layout.features, axis=1, tiled=True)
            shared = shared._replace(kernel=whole)
        inner = how._replace(axis_name=(*how.axes, *layout.classes) or None)
        return f(rows, shared, inner, tuple(a for axes in layout.examples for a in axes))

    specs, out = layout.specs(rows, shared), outputs(PartitionSpec(*layout.examples))
    found = meshes.by_device(part, (rows, shared), typed[0], specs, out)
    given = PartitionSpec(*jax.typeof(rows.inputs).sharding.spec[: len(rows.shape)])
    return meshes.laid(found, meshes.explicit_axes(typed[0])[0], outputs(given))


def _layout(rows: Rows, shared: Shared) -> Layout:
    classes, features = (_axes(shared.kernel, d) for d in range(2))
    examples = tuple(
        tuple(a for a in _axes(rows.inputs, d) if a not in classes) for d in range(len(rows.shape))
    )
    features = tuple(a for a in features if any(a in axes for axes in examples))
    return Layout(examples, classes, features)


def _axes(x: jax.Array, dimension: int) -> Axes:
    axes = jax.typeof(x).sharding.spec[dimension]
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
