"""torch's elementwise regression losses: L1, MSE, smooth L1, Huber."""

from __future__ import annotations

import jax
from jax.typing import ArrayLike

from jaxloss._base import checks
from jaxloss._base.reduction import Reduction
from jaxloss.core import regression as core
from jaxloss.functional._torch import reduced, torch_function, weighted


@torch_function()
def l1_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    weight: ArrayLike | None = None,
) -> jax.Array:
    """As torch.nn.functional.l1_loss, over `jaxloss.absolute_error`.

    Differs from torch: shapes must be equal; the gradient with respect to a complex input is
    JAX's, the conjugate of torch's.

    Args:
      input: floating-point or complex array of any shape.
      target: array of the same shape.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum". With `weight` the mean divides by the sum of weights.
      weight: one weight per element, in the shape of `input`.

    Returns:
      A scalar, or one loss per element for "none"; at least float32.

    Raises:
      TypeError: `input` is neither floating-point nor complex.
      ValueError: the shapes differ or the reduction is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import functional as F
      >>> print(F.l1_loss(jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 0.0, 4.0])))
      1.0

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.l1_loss.html
    """
    losses, weights = weighted(core.absolute_error(input, target), weight)
    return reduced(losses, reduction, weights)


@torch_function()
def mse_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    weight: ArrayLike | None = None,
) -> jax.Array:
    """As torch.nn.functional.mse_loss, over `jaxloss.squared_error`.

    Differs from torch: shapes must be equal.

    Args:
      input: floating-point array of any shape.
      target: array of the same shape.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum". With `weight` the mean divides by the sum of weights.
      weight: one weight per element, in the shape of `input`.

    Returns:
      A scalar, or one loss per element for "none"; at least float32.

    Raises:
      TypeError: `input` is not floating-point.
      ValueError: the shapes differ or the reduction is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import functional as F
      >>> print(F.mse_loss(jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0])))
      2.0

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.mse_loss.html
    """
    losses, weights = weighted(core.squared_error(input, target), weight)
    return reduced(losses, reduction, weights)


@torch_function(domain={"beta": checks.NON_NEGATIVE})
def smooth_l1_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    beta: ArrayLike = 1.0,
) -> jax.Array:
    """As torch.nn.functional.smooth_l1_loss, over `jaxloss.smooth_l1_loss`.

    Differs from torch: shapes must be equal.

    Args:
      input: floating-point array of any shape.
      target: array of the same shape.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".
      beta: threshold between the squared and the absolute part; 0 gives the L1 loss.

    Returns:
      A scalar, or one loss per element for "none"; at least float32.

    Raises:
      TypeError: `input` is not floating-point.
      ValueError: the shapes differ, `beta` is negative or the reduction is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import functional as F
      >>> print(F.smooth_l1_loss(jnp.array([1.0, 3.0]), jnp.array([0.0, 0.0]), beta=2.0))
      1.125

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.smooth_l1_loss.html
    """
    return reduced(core.smooth_l1_loss(input, target, beta=beta), reduction)


@torch_function(domain={"delta": checks.POSITIVE})
def huber_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Reduction = "mean",
    delta: ArrayLike = 1.0,
    weight: ArrayLike | None = None,
) -> jax.Array:
    """As torch.nn.functional.huber_loss, over `jaxloss.huber_loss`.

    Differs from torch: shapes must be equal.

    Args:
      input: floating-point array of any shape.
      target: array of the same shape.
      reduction: "none", "mean" or "sum". The mean divides by the number of elements, even with
        `weight`.
      delta: threshold between the squared and the absolute part, above 0.
      weight: one weight per element, in the shape of `input`.

    Returns:
      A scalar, or one loss per element for "none"; at least float32.

    Raises:
      TypeError: `input` is not floating-point.
      ValueError: the shapes differ, `delta` is not positive or the reduction is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import functional as F
      >>> print(F.huber_loss(jnp.array([1.0, 3.0]), jnp.array([0.0, 0.0]), delta=2.0))
      2.25

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.huber_loss.html
    """
    losses, _ = weighted(core.huber_loss(input, target, delta=delta), weight)
    return reduced(losses, reduction)
