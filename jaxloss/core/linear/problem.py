"""What a linear loss is made from: examples, what they share, and how it is to be computed."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import PrecisionLike

from jaxloss.core import cross_entropy
from jaxloss.core.classes.axes import AxisName


class Rows(NamedTuple):
    """Examples, of one dimension N or of several; in blocks, (blocks, N of a block)."""

    inputs: jax.Array  # (N, D)
    labels: jax.Array  # (N,) class indices, or (N, C) class probabilities.
    where: jax.Array | None  # (N,), which of them take part.

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inputs.shape[:-1]


class Shared(NamedTuple):
    """What all examples have in common."""

    kernel: jax.Array  # (C, D)
    bias: jax.Array | None  # (C,)
    terms: cross_entropy.Terms


class How(NamedTuple):
    """What shapes the computation."""

    axis_name: AxisName = None
    precision: PrecisionLike = None  # Of every product.
    blocks: int = 1  # Of a portion of the examples, whose products are made at once.

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes over which the classes are spread."""
        names = self.axis_name
        return () if names is None else (names,) if isinstance(names, str) else names

    def rounds(self, operands: jax.Array) -> bool:
        """Whether what goes back through a product is rounded to the dtype of its operands."""
        precision = self.precision
        if precision is None:
            # JAX defines its options at run time only.
            precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
        asked = precision if isinstance(precision, tuple) else (precision,)
        exact = {"highest", "float32", lax.Precision.HIGHEST}
        return jnp.finfo(operands.dtype).bits < 32 and exact.isdisjoint(asked)
