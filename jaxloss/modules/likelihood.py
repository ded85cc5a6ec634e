"""torch.nn's loss classes: negative log likelihoods and the Kullback-Leibler divergence."""

from __future__ import annotations

import dataclasses
import warnings

import jax
import jax.core
from jax.typing import ArrayLike

from jaxloss import functional as F
from jaxloss._base import checks
from jaxloss._base.reduction import BatchReduction, Reduction
from jaxloss.modules.base import Loss, value_of


@dataclasses.dataclass(eq=False)
class NLLLoss(Loss):
    """Negative log likelihood of class indices, as torch.nn.NLLLoss; see
    `jaxloss.functional.nll_loss`.

    Args:
      weight: one weight per class, shape (C,); a buffer, not trained.
      size_average: deprecated, see `reduction`.
      ignore_index: the target of examples that do not take part.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.NLLLoss(weight=jnp.array([1.0, 3.0]))
      >>> log_probs = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]]))
      >>> print(f"{loss(log_probs, jnp.array([0, 1])):.4f}")
      0.3890

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.NLLLoss.html
    """

    weight: ArrayLike | None = None
    size_average: bool | None = None
    ignore_index: int = -100
    reduce: bool | None = None
    reduction: Reduction = "mean"

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.nll_loss(
            input,
            target,
            weight=value_of(self.weight),
            ignore_index=value_of(self.ignore_index),
            reduction=self.reduction,
        )


@dataclasses.dataclass(eq=False)
class NLLLoss2d(NLLLoss):
    """Deprecated name of `NLLLoss`, which takes images as well; see `jaxloss.functional.nll_loss`.

    Args:
      weight: as in `NLLLoss`.
      size_average: as in `NLLLoss`.
      ignore_index: as in `NLLLoss`.
      reduce: as in `NLLLoss`.
      reduction: as in `NLLLoss`.

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import warnings
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> with warnings.catch_warnings(action="ignore"):  # A FutureWarning, as in torch.
      ...     loss = nnx.NLLLoss2d()
      >>> log_probs = jnp.log(jnp.array([[[[0.5, 0.25]], [[0.5, 0.75]]]]))
      >>> print(f"{loss(log_probs, jnp.array([[[0, 1]]])):.4f}")
      0.4904

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.NLLLoss.html
    """

    def __post_init__(self) -> None:
        warnings.warn("NLLLoss2d is deprecated, please use NLLLoss", FutureWarning, stacklevel=3)
        super().__post_init__()


@dataclasses.dataclass(eq=False)
class PoissonNLLLoss(Loss):
    """Negative log likelihood of counts, as torch.nn.PoissonNLLLoss; see
    `jaxloss.functional.poisson_nll_loss`.

    Args:
      log_input: whether the input is the log of the expected count.
      full: whether to add Stirling's approximation of log(target!) for targets above 1.
      size_average: deprecated, see `reduction`.
      eps: keeps the logarithm finite without `log_input`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.PoissonNLLLoss()
      >>> print(f"{loss(jnp.array([0.0, 1.0]), jnp.array([2.0, 0.0])):.4f}")
      1.8591

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.PoissonNLLLoss.html
    """

    log_input: bool = True
    full: bool = False
    size_average: bool | None = None
    eps: float = 1e-8
    reduce: bool | None = None
    reduction: Reduction = "mean"

    def __call__(self, log_input: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.poisson_nll_loss(
            log_input,
            target,
            log_input=self.log_input,
            full=self.full,
            eps=value_of(self.eps),
            reduction=self.reduction,
        )


@dataclasses.dataclass(eq=False)
class GaussianNLLLoss(Loss):
    """Negative log likelihood under Gaussians, as torch.nn.GaussianNLLLoss; see
    `jaxloss.functional.gaussian_nll_loss`.

    Args:
      full: whether to add the constant ½ log 2π.
      eps: the least variance.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.GaussianNLLLoss()
      >>> print(loss(jnp.array([0.0, 1.0]), jnp.array([0.5, 1.0]), jnp.array([1.0, 1.0])))
      0.0625

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.GaussianNLLLoss.html
    """

    full: bool = dataclasses.field(default=False, kw_only=True)
    eps: float = dataclasses.field(default=1e-6, kw_only=True)
    reduction: Reduction = dataclasses.field(default="mean", kw_only=True)

    def __call__(self, input: ArrayLike, target: ArrayLike, var: ArrayLike) -> jax.Array:
        return F.gaussian_nll_loss(
            input, target, var, full=self.full, eps=value_of(self.eps), reduction=self.reduction
        )


@dataclasses.dataclass(eq=False)
class KLDivLoss(Loss):
    """Kullback-Leibler divergence, as torch.nn.KLDivLoss; see `jaxloss.functional.kl_div`.

    Args:
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean", "sum" or "batchmean"; the last is the divergence.
      log_target: whether targets are log probabilities.

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.KLDivLoss(reduction="batchmean")
      >>> input, target = jnp.log(jnp.array([[0.5, 0.5]])), jnp.array([[1.0, 0.0]])
      >>> print(f"{loss(input, target):.4f}")
      0.6931

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.KLDivLoss.html
    """

    size_average: bool | None = None
    reduce: bool | None = None
    reduction: BatchReduction = "mean"
    log_target: bool = False

    def _check(self) -> None:
        checks.one_of("reduction", self.reduction, ("none", "mean", "sum", "batchmean"))

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.kl_div(input, target, reduction=self.reduction, log_target=self.log_target)
