"""torch.nn's loss classes: regression by L1, MSE, smooth L1 and Huber."""

from __future__ import annotations

import dataclasses

import jax
import jax.core
from jax.typing import ArrayLike

from jaxloss import functional as F
from jaxloss._base.reduction import Reduction
from jaxloss.modules.base import Loss, value_of


@dataclasses.dataclass(eq=False)
class L1Loss(Loss):
    """Mean absolute error, as torch.nn.L1Loss; see `jaxloss.functional.l1_loss`.

    Args:
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.L1Loss()
      >>> print(loss(jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 0.0, 4.0])))
      1.0

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.L1Loss.html
    """

    size_average: bool | None = None
    reduce: bool | None = None
    reduction: Reduction = "mean"

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.l1_loss(input, target, reduction=self.reduction)


@dataclasses.dataclass(eq=False)
class MSELoss(Loss):
    """Mean squared error, as torch.nn.MSELoss; see `jaxloss.functional.mse_loss`.

    Args:
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.MSELoss()
      >>> print(loss(jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0])))
      2.0

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.MSELoss.html
    """

    size_average: bool | None = None
    reduce: bool | None = None
    reduction: Reduction = "mean"

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.mse_loss(input, target, reduction=self.reduction)


@dataclasses.dataclass(eq=False)
class SmoothL1Loss(Loss):
    """Smooth L1 loss, as torch.nn.SmoothL1Loss; see `jaxloss.functional.smooth_l1_loss`.

    Args:
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".
      beta: threshold between the squared and the absolute part; 0 gives the L1 loss.

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.SmoothL1Loss(beta=2.0)
      >>> print(loss(jnp.array([1.0, 3.0]), jnp.array([0.0, 0.0])))
      1.125

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.SmoothL1Loss.html
    """

    size_average: bool | None = None
    reduce: bool | None = None
    reduction: Reduction = "mean"
    beta: float = 1.0

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.smooth_l1_loss(input, target, reduction=self.reduction, beta=value_of(self.beta))


@dataclasses.dataclass(eq=False)
class HuberLoss(Loss):
    """Huber loss, as torch.nn.HuberLoss; see `jaxloss.functional.huber_loss`.

    Args:
      reduction: "none", "mean" or "sum".
      delta: threshold between the squared and the absolute part, above 0.

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.HuberLoss(delta=2.0)
      >>> print(loss(jnp.array([1.0, 3.0]), jnp.array([0.0, 0.0])))
      2.25

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.HuberLoss.html
    """

    reduction: Reduction = "mean"
    delta: float = 1.0

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.huber_loss(input, target, reduction=self.reduction, delta=value_of(self.delta))
