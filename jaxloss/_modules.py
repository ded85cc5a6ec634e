"""torch.nn's loss classes as plain dataclasses: torch's constructor arguments, and the call.

`jaxloss.nnx` and `jaxloss.linen` make Flax modules of them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import operator
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxloss import _checks
from jaxloss import functional as F
from jaxloss._public import public
from jaxloss._reduction import BatchReduction, Reduction, reduce_as_torch
from jaxloss.core import adaptive_softmax as core
from jaxloss.functional._torch import legacy_reduction

T = TypeVar("T")


# Fields that hold an array, and numbers that a program may compute. An array in one of them is
# data: `jaxloss.nnx` keeps it in the state, `jaxloss.linen` as a constant.
BUFFERS = frozenset({"weight", "pos_weight"})
NUMBERS = frozenset({"margin", "eps", "beta", "delta", "label_smoothing", "ignore_index"})


def value_of(field: Any) -> Any:
    """What a field stands for, out of the container that a Flax module keeps an array in."""
    return field.get_value() if hasattr(field, "get_value") else field


@functools.cache
def _arguments(cls: type) -> frozenset[str]:
    """torch's constructor arguments, without the fields that a user's subclass adds."""
    plain: Any = next(c for c in cls.__mro__ if c.__module__ == __name__)
    return frozenset(field.name for field in dataclasses.fields(plain))


def data_fields(cls: type) -> frozenset[str]:
    """Those of torch's arguments that may be arrays; a name that a user adds is the user's own."""
    return _arguments(cls) & (BUFFERS | NUMBERS)


def _settled(name: str, value: Any) -> Any:
    """What a module keeps of an argument: data as one array, everything else as Python values."""
    if name in BUFFERS:
        return None if value is None else _checks.buffer(name, value)
    if not isinstance(value, jax.Array | np.ndarray):
        return value
    if name in NUMBERS:
        return _checks.buffer(name, value)
    if isinstance(value, jax.core.Tracer):
        rule = "be a Python value, for it shapes the computation"
        _checks.fail(TypeError, name, rule, "an array")
    return value.tolist()


class Loss:
    """What the losses share: the legacy reduction, arrays as fields, and the documentation."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if cls.__doc__ is None:
            cls.__doc__ = cls.__mro__[1].__doc__
        super().__init_subclass__(**kwargs)

    if not TYPE_CHECKING:  # So that a misspelt attribute stays an error to type checkers.

        def __setattr__(self, name: str, value: Any) -> None:
            # Here and not in the constructor, so that what is assigned later is kept alike.
            if name in _arguments(type(self)) and value_of(value) is value:
                with _checks.speaking_for(_checks.Caller(type(self).__name__, {})):
                    value = _settled(name, value)
            super().__setattr__(name, value)

    def __post_init__(self) -> None:
        # A dictionary, since not every loss has every field.
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        size_average, reduce = fields.get("size_average"), fields.get("reduce")
        if size_average is not None or reduce is not None:
            self.reduction = legacy_reduction(size_average, reduce, stacklevel=3)
            self.size_average = self.reduce = None
        with _checks.speaking_for(_checks.Caller(type(self).__name__, {})):
            self._check()
        then = getattr(super(), "__post_init__", None)
        if then:
            then()

    def _check(self) -> None:
        _checks.one_of("reduction", self.reduction, ("none", "mean", "sum"))


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
    """Deprecated name of `NLLLoss`, which takes images as well.

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
        _checks.one_of("reduction", self.reduction, ("none", "mean", "sum", "batchmean"))

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.kl_div(input, target, reduction=self.reduction, log_target=self.log_target)


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
class BCELoss(Loss):
    """Binary cross entropy of probabilities, as torch.nn.BCELoss; see
    `jaxloss.functional.binary_cross_entropy`.

    Args:
      weight: broadcastable to the shape of the input; a buffer, not trained.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.BCELoss()
      >>> print(f"{loss(jnp.array([0.5, 0.9]), jnp.array([1.0, 1.0])):.4f}")
      0.3993

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.BCELoss.html
    """

    weight: ArrayLike | None = None
    size_average: bool | None = None
    reduce: bool | None = None
    reduction: Reduction = "mean"

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.binary_cross_entropy(
            input, target, weight=value_of(self.weight), reduction=self.reduction
        )


@dataclasses.dataclass(eq=False)
class BCEWithLogitsLoss(Loss):
    """Binary cross entropy of logits, as torch.nn.BCEWithLogitsLoss; see
    `jaxloss.functional.binary_cross_entropy_with_logits`.

    Args:
      weight: broadcastable to the shape of the input; a buffer, not trained.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".
      pos_weight: weight of the positive targets, broadcastable to the shape of the input; a
        buffer, not trained.

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.BCEWithLogitsLoss(pos_weight=jnp.array([2.0]))
      >>> print(f"{loss(jnp.array([0.0, 2.0]), jnp.array([1.0, 0.0])):.4f}")
      1.7566

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.BCEWithLogitsLoss.html
    """

    weight: ArrayLike | None = None
    size_average: bool | None = None
    reduce: bool | None = None
    reduction: Reduction = "mean"
    pos_weight: ArrayLike | None = None

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.binary_cross_entropy_with_logits(
            input,
            target,
            weight=value_of(self.weight),
            pos_weight=value_of(self.pos_weight),
            reduction=self.reduction,
        )


@dataclasses.dataclass(eq=False)
class HingeEmbeddingLoss(Loss):
    """Hinge embedding loss, as torch.nn.HingeEmbeddingLoss; see
    `jaxloss.functional.hinge_embedding_loss`.

    Args:
      margin: in the unit of the input.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.HingeEmbeddingLoss()
      >>> print(loss(jnp.array([0.25, 0.25]), jnp.array([1.0, -1.0])))
      0.5

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.HingeEmbeddingLoss.html
    """

    margin: float = 1.0
    size_average: bool | None = None
    reduce: bool | None = None
    reduction: Reduction = "mean"

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.hinge_embedding_loss(
            input, target, margin=value_of(self.margin), reduction=self.reduction
        )


@dataclasses.dataclass(eq=False)
class MultiLabelMarginLoss(Loss):
    """Multi-label margin loss, as torch.nn.MultiLabelMarginLoss; see
    `jaxloss.functional.multilabel_margin_loss`.

    Args:
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.MultiLabelMarginLoss()
      >>> input, target = jnp.array([[0.1, 0.2, 0.4, 0.8]]), jnp.array([[3, 0, -1, 1]])
      >>> print(f"{loss(input, target):.4f}")
      0.8500

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiLabelMarginLoss.html
    """

    size_average: bool | None = None
    reduce: bool | None = None
    reduction: Reduction = "mean"

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.multilabel_margin_loss(input, target, reduction=self.reduction)


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


@dataclasses.dataclass(eq=False)
class SoftMarginLoss(Loss):
    """Soft margin loss, as torch.nn.SoftMarginLoss; see `jaxloss.functional.soft_margin_loss`.

    Args:
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.SoftMarginLoss()
      >>> print(f"{loss(jnp.array([0.0, 2.0]), jnp.array([1.0, -1.0])):.4f}")
      1.4100

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.SoftMarginLoss.html
    """

    size_average: bool | None = None
    reduce: bool | None = None
    reduction: Reduction = "mean"

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.soft_margin_loss(input, target, reduction=self.reduction)


@dataclasses.dataclass(eq=False)
class CrossEntropyLoss(Loss):
    """Cross entropy of logits, as torch.nn.CrossEntropyLoss; see
    `jaxloss.functional.cross_entropy`.

    Args:
      weight: one weight per class, shape (C,); a buffer, not trained.
      size_average: deprecated, see `reduction`.
      ignore_index: the class index of examples that do not take part.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".
      label_smoothing: share of the target spread evenly over the classes, in [0, 1].

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.CrossEntropyLoss(label_smoothing=0.1)
      >>> logits = jnp.array([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]])
      >>> print(f"{loss(logits, jnp.array([0, -100])):.4f}")
      0.3995

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
    """

    weight: ArrayLike | None = None
    size_average: bool | None = None
    ignore_index: int = -100
    reduce: bool | None = None
    reduction: Reduction = "mean"
    label_smoothing: float = 0.0

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.cross_entropy(
            input,
            target,
            weight=value_of(self.weight),
            ignore_index=value_of(self.ignore_index),
            reduction=self.reduction,
            label_smoothing=value_of(self.label_smoothing),
        )


@dataclasses.dataclass(eq=False)
class MultiLabelSoftMarginLoss(Loss):
    """Multi-label soft margin loss, as torch.nn.MultiLabelSoftMarginLoss; see
    `jaxloss.functional.multilabel_soft_margin_loss`.

    Args:
      weight: one weight per class, shape (C,); a buffer, not trained.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.MultiLabelSoftMarginLoss()
      >>> input, target = jnp.array([[1.0, -2.0, 0.0]]), jnp.array([[1.0, 0.0, 1.0]])
      >>> print(f"{loss(input, target):.4f}")
      0.3778

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiLabelSoftMarginLoss.html
    """

    weight: ArrayLike | None = None
    size_average: bool | None = None
    reduce: bool | None = None
    reduction: Reduction = "mean"

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.multilabel_soft_margin_loss(
            input, target, weight=value_of(self.weight), reduction=self.reduction
        )


@dataclasses.dataclass(eq=False)
class CosineEmbeddingLoss(Loss):
    """Cosine embedding loss, as torch.nn.CosineEmbeddingLoss; see
    `jaxloss.functional.cosine_embedding_loss`.

    Args:
      margin: the largest cosine that a dissimilar pair may have for free.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.CosineEmbeddingLoss(margin=0.5)
      >>> x1, x2 = jnp.array([[3.0, 4.0], [3.0, 4.0]]), jnp.array([[4.0, 3.0], [4.0, 3.0]])
      >>> print(f"{loss(x1, x2, jnp.array([1.0, -1.0])):.4f}")
      0.2500

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.CosineEmbeddingLoss.html
    """

    margin: float = 0.0
    size_average: bool | None = None
    reduce: bool | None = None
    reduction: Reduction = "mean"

    def __call__(self, input1: ArrayLike, input2: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.cosine_embedding_loss(
            input1, input2, target, margin=value_of(self.margin), reduction=self.reduction
        )


@dataclasses.dataclass(eq=False)
class MarginRankingLoss(Loss):
    """Margin ranking loss, as torch.nn.MarginRankingLoss; see
    `jaxloss.functional.margin_ranking_loss`.

    Args:
      margin: in the unit of the scores.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.MarginRankingLoss(margin=0.25)
      >>> print(loss(jnp.array([2.0, 0.5]), jnp.array([1.0, 1.0]), jnp.array([1.0, 1.0])))
      0.375

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.MarginRankingLoss.html
    """

    margin: float = 0.0
    size_average: bool | None = None
    reduce: bool | None = None
    reduction: Reduction = "mean"

    def __call__(self, input1: ArrayLike, input2: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.margin_ranking_loss(
            input1, input2, target, margin=value_of(self.margin), reduction=self.reduction
        )


@dataclasses.dataclass(eq=False)
class MultiMarginLoss(Loss):
    """Multi-class margin loss, as torch.nn.MultiMarginLoss; see
    `jaxloss.functional.multi_margin_loss`.

    Args:
      p: 1 or 2.
      margin: in the unit of the input.
      weight: one weight per class, shape (C,); a buffer, not trained.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown, `p` is neither 1 nor 2, or `weight` is no vector. A call
        raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.MultiMarginLoss()
      >>> print(f"{loss(jnp.array([[0.1, 0.2, 0.4, 0.8]]), jnp.array([3])):.4f}")
      0.3250

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiMarginLoss.html
    """

    p: int = 1
    margin: float = 1.0
    weight: ArrayLike | None = None
    size_average: bool | None = None
    reduce: bool | None = None
    reduction: Reduction = "mean"

    def _check(self) -> None:
        super()._check()
        _checks.one_of("p", self.p, (1, 2))
        weight = value_of(self.weight)
        if weight is not None and jnp.ndim(weight) != 1:
            _checks.fail(ValueError, "weight", "have shape (C,)", jnp.shape(weight))

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return F.multi_margin_loss(
            input,
            target,
            p=self.p,
            margin=value_of(self.margin),
            weight=value_of(self.weight),
            reduction=self.reduction,
        )


@dataclasses.dataclass(eq=False)
class TripletMarginLoss(Loss):
    """Triplet margin loss, as torch.nn.TripletMarginLoss; see
    `jaxloss.functional.triplet_margin_loss`.

    Args:
      margin: above 0, in the unit of the distance.
      p: the degree of the norm.
      eps: added to every difference.
      swap: whether a negative closer to the positive than to the anchor counts from there.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown or `margin` is not positive. A call raises what the
        function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.TripletMarginLoss()
      >>> anchor, positive = jnp.array([[0.0, 0.0]]), jnp.array([[0.0, 1.0]])
      >>> print(f"{loss(anchor, positive, jnp.array([[1.5, 0.0]])):.4f}")
      0.5000

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.TripletMarginLoss.html
    """

    margin: float = 1.0
    p: float = 2.0
    eps: float = 1e-6
    swap: bool = False
    size_average: bool | None = None
    reduce: bool | None = None
    reduction: Reduction = "mean"

    def _check(self) -> None:
        super()._check()
        _checks.POSITIVE.check_concrete("margin", value_of(self.margin))

    def __call__(self, anchor: ArrayLike, positive: ArrayLike, negative: ArrayLike) -> jax.Array:
        return F.triplet_margin_loss(
            anchor,
            positive,
            negative,
            margin=value_of(self.margin),
            p=self.p,
            eps=value_of(self.eps),
            swap=self.swap,
            reduction=self.reduction,
        )


@dataclasses.dataclass(eq=False)
class TripletMarginWithDistanceLoss(Loss):
    """Triplet margin loss under a distance of one's own, as torch.nn.TripletMarginWithDistanceLoss;
    see `jaxloss.functional.triplet_margin_with_distance_loss`.

    Args:
      distance_function: maps two batches to one distance per pair, and may be a Flax module;
        `pairwise_distance` if None.
      margin: above 0, in the unit of the distance.
      swap: whether a negative closer to the positive than to the anchor counts from there.
      reduction: "none", "mean" or "sum".

    Raises:
      ValueError: the reduction is unknown or `margin` is not positive. A call raises what the
        function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> def manhattan(x, y):
      ...     return jnp.sum(jnp.abs(x - y), axis=-1)
      >>> loss = nnx.TripletMarginWithDistanceLoss(distance_function=manhattan, margin=2.0)
      >>> anchor, positive = jnp.array([[0.0, 0.0]]), jnp.array([[0.0, 1.0]])
      >>> print(loss(anchor, positive, jnp.array([[1.5, 0.5]])))
      1.0

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.TripletMarginWithDistanceLoss.html
    """

    distance_function: Callable[[Any, Any], jax.Array] | None = dataclasses.field(
        default=None, kw_only=True
    )
    margin: float = dataclasses.field(default=1.0, kw_only=True)
    swap: bool = dataclasses.field(default=False, kw_only=True)
    reduction: Reduction = dataclasses.field(default="mean", kw_only=True)

    def _check(self) -> None:
        super()._check()
        _checks.POSITIVE.check_concrete("margin", value_of(self.margin))

    def __call__(self, anchor: ArrayLike, positive: ArrayLike, negative: ArrayLike) -> jax.Array:
        return F.triplet_margin_with_distance_loss(
            anchor,
            positive,
            negative,
            distance_function=self.distance_function,
            margin=value_of(self.margin),
            swap=self.swap,
            reduction=self.reduction,
        )


@dataclasses.dataclass(eq=False)
class CTCLoss(Loss):
    """Connectionist temporal classification, as torch.nn.CTCLoss; see
    `jaxloss.functional.ctc_loss`.

    Args:
      blank: the index of the blank.
      reduction: "none", "mean" or "sum". The mean is that of the losses divided by the target
        lengths.
      zero_infinity: whether to make infinite losses 0.

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.CTCLoss()
      >>> log_probs = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]))
      >>> print(jnp.exp(-loss(log_probs, jnp.array([1]), 2, 1)))
      0.3125

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.CTCLoss.html
    """

    blank: int = 0
    reduction: Reduction = "mean"
    zero_infinity: bool = False

    def __call__(
        self,
        log_probs: ArrayLike,
        targets: ArrayLike,
        input_lengths: ArrayLike | Sequence[int],
        target_lengths: ArrayLike | Sequence[int],
    ) -> jax.Array:
        return F.ctc_loss(
            log_probs,
            targets,
            input_lengths,
            target_lengths,
            blank=self.blank,
            reduction=self.reduction,
            zero_infinity=self.zero_infinity,
        )


Initializer = Callable[[jax.Array, tuple[int, ...], Any], Any]


def torch_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """torch's initial weights of a linear layer, (outputs, inputs): uniform in ±1/√inputs."""
    return _uniform(key, shape, dtype, shape[-1])


def _uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any, features: int) -> jax.Array:
    bound = 1 / math.sqrt(max(features, 1))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class LinearLoss(Loss):
    """A loss that holds linear layers, and takes what Flax's own layers take to make them."""

    dtype: Any
    param_dtype: Any
    kernel_init: Initializer
    bias_init: Initializer | None

    def _check_layers(self) -> None:
        if self.dtype is not None:
            _check_floating("dtype", self.dtype)
        _check_floating("param_dtype", self.param_dtype)
        rule = "be an initializer, which takes a key, a shape and a dtype"
        if not callable(self.kernel_init):
            _checks.fail(TypeError, "kernel_init", rule, repr(self.kernel_init))
        if self.bias_init is not None and not callable(self.bias_init):
            _checks.fail(TypeError, "bias_init", rule, repr(self.bias_init))

    def _bias_init(self, features: int) -> Initializer:
        """For a layer of so many inputs: torch bounds its bias by them, as it does its weights,
        and an initializer is not told them."""
        return self.bias_init or functools.partial(_uniform, features=features)

    def _promoted(self, argument: str, value: Any) -> Any:
        """An input or a parameter in the dtype of the computation."""
        if self.dtype is None or value is None:
            return value
        with _checks.speaking_for(_checks.Caller(type(self).__name__, {})):
            array = _checks.buffer(argument, value)
        # A complex one would lose half of itself; the loss refuses it.
        return array if jnp.iscomplexobj(array) else array.astype(self.dtype)


def _check_floating(name: str, dtype: Any) -> None:
    try:
        holds = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    except TypeError:
        holds = False
    if not holds:
        _checks.fail(TypeError, name, "be a floating-point dtype", repr(dtype))


@dataclasses.dataclass(eq=False)
class LinearCrossEntropyLoss(LinearLoss):
    """Cross entropy of a linear layer's outputs without the logits, as
    torch.nn.LinearCrossEntropyLoss; see `jaxloss.functional.linear_cross_entropy`.

    The layer is the module's own: `linear.weight` of shape (C·d1·…·dK, in_features) and
    `linear.bias`, laid out and initialised as torch's. For an embedding tied to the output call
    the function with its table. The kernel of Flax's Dense or Linear is (in_features, classes):
    load its `.T`, also where a square one would go in as it is.

    Args:
      in_features: size of each input.
      num_classes: C.
      out_features: (d1, …, dK), the positions that each input has a target for.
      bias: whether the layer has one.
      reduction: "none", "mean" or "sum".
      weight: one weight per class, shape (C,); a buffer, not trained.
      ignore_index: the class index of targets that do not take part, -100 by default.
      label_smoothing: share of the target spread evenly over the classes, in [0, 1].
      chunk_size: bounds the memory, as in `jaxloss.linear_softmax_cross_entropy`.
      dtype: of the computation, to which inputs and parameters are promoted; by default that of
        the inputs and the parameters. Sums are in float32 at least.
      param_dtype: of the parameters.
      kernel_init: initializer of `linear.weight`, called with a key, a shape and `param_dtype`;
        by default torch's, uniform in ±1/√inputs. The shape is (outputs, inputs) as in torch, so
        that the fan-in is axis -1: `variance_scaling(..., in_axis=-1, out_axis=-2)`. Within Flax's
        `with_partitioning` it says how the parameter is sharded.
      bias_init: likewise of `linear.bias`, called with the shape (outputs,), by default torch's.
      rngs: NNX only: where the initial parameters are drawn; Linen takes a key in `init`.

    Raises:
      ValueError: the reduction is unknown, a size is negative or no integer, `weight` has another
        shape, or `label_smoothing` is not in [0, 1]. A call raises what the function raises.
      TypeError: a dtype is not floating-point, or an initializer not callable.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxloss import linen
      >>> loss = linen.LinearCrossEntropyLoss(2, 4)
      >>> weight = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [-1.0, 0.0]])
      >>> features = jnp.array([[1.0, 2.0], [0.0, -1.0]])
      >>> parameters = {"params": {"linear": {"weight": weight}}}
      >>> print(f"{loss.apply(parameters, features, jnp.array([1, 3])):.4f}")
      0.8976

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.LinearCrossEntropyLoss.html
    """

    in_features: int
    num_classes: int
    _: dataclasses.KW_ONLY
    out_features: tuple[int, ...] = ()
    bias: bool = False
    reduction: Reduction = "mean"
    weight: ArrayLike | None = None
    ignore_index: int | None = None
    label_smoothing: float = 0.0
    chunk_size: int | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Initializer = torch_init
    bias_init: Initializer | None = None

    def _check(self) -> None:
        super()._check()
        self._check_layers()
        _checks.count("in_features", self.in_features, 0)
        _checks.count("num_classes", self.num_classes, 1)
        wanted, weight = (self.num_classes,), value_of(self.weight)
        if weight is not None and jnp.shape(weight) != wanted:
            _checks.fail(ValueError, "weight", f"have shape {wanted}", jnp.shape(weight))
        _checks.FRACTION.check_concrete("label_smoothing", value_of(self.label_smoothing))

    def _outputs(self) -> int:
        return math.prod(self.out_features, start=self.num_classes)

    def _loss(
        self, weight: jax.Array, bias: jax.Array | None, input: ArrayLike, target: ArrayLike
    ) -> jax.Array:
        shape = self.num_classes, *self.out_features
        weight, bias = self._promoted("linear.weight", weight), self._promoted("linear.bias", bias)
        return F.linear_cross_entropy(
            self._promoted("input", input),
            weight.reshape(*shape, self.in_features),
            target,
            linear_bias=None if bias is None else bias.reshape(shape),
            weight=value_of(self.weight),
            reduction=self.reduction,
            ignore_index=value_of(self.ignore_index),
            label_smoothing=value_of(self.label_smoothing),
            chunk_size=self.chunk_size,
        )


class AdaptiveOutput(NamedTuple):
    """What `AdaptiveLogSoftmaxWithLoss` returns."""

    output: jax.Array  # The log probability of each target.
    loss: jax.Array  # Their negative mean.


@dataclasses.dataclass(eq=False)
class AdaptiveLogSoftmaxWithLoss(LinearLoss):
    """Adaptive softmax with its loss, as torch.nn.AdaptiveLogSoftmaxWithLoss; see
    `jaxloss.adaptive_softmax_cross_entropy`.

    Called with inputs (N, in_features) or (in_features) and targets (N) or (), it returns the log
    probabilities of the targets, `output`, and their negative mean, `loss`. The parameters are
    named, laid out and initialised as torch's: `head.weight`, `head.bias`, and of cluster i
    `tail.i.0.weight` for the projection and `tail.i.1.weight` for the classes. In NNX these are
    the paths of the state; in Linen the layers' names have `_` for the inner dots, as below.

    Args:
      in_features: size of each input.
      n_classes: number of classes, sorted by falling frequency.
      cutoffs: the first class of each cluster, increasing, in [1, n_classes - 1].
      div_value: each cluster has so many times fewer features than what comes before it.
      head_bias: whether the head has a bias.
      dtype: of the computation, to which inputs and parameters are promoted; by default that of
        the inputs and the parameters. Sums are in float32 at least.
      param_dtype: of the parameters.
      kernel_init: initializer of all weights, called with a key, a shape and `param_dtype`;
        by default torch's, uniform in ±1/√inputs. The shape is (outputs, inputs) as in torch, so
        that the fan-in is axis -1: `variance_scaling(..., in_axis=-1, out_axis=-2)`. Within Flax's
        `with_partitioning` it says how the parameter is sharded.
      bias_init: likewise of the head's bias, called with the shape (outputs,), by default torch's.
      rngs: NNX only: where the initial parameters are drawn; Linen takes a key in `init`.

    Raises:
      ValueError: a size is too small or no integer, `cutoffs` are no increasing integers in
        [1, n_classes - 1], `div_value` is not positive, or it leaves a cluster without features. A
        call raises what `jaxloss.adaptive_softmax_cross_entropy` raises.
      TypeError: a dtype is not floating-point, or an initializer not callable.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from jaxloss import linen
      >>> loss = linen.AdaptiveLogSoftmaxWithLoss(2, 4, [2], div_value=2.0)
      >>> state_dict = {  # torch's, as numpy arrays.
      ...     "head.weight": np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], np.float32),
      ...     "tail.0.0.weight": np.array([[1.0, 1.0]], np.float32),
      ...     "tail.0.1.weight": np.array([[1.0], [0.0]], np.float32),
      ... }
      >>> parameters = {}
      >>> for name, value in state_dict.items():
      ...     layer, own = name.rsplit(".", 1)
      ...     parameters.setdefault(layer.replace(".", "_"), {})[own] = value
      >>> features = jnp.array([[1.0, 2.0], [0.0, -1.0]])
      >>> output, mean = loss.apply({"params": parameters}, features, jnp.array([1, 3]))
      >>> print(output.round(4), mean.round(4))
      [-0.6803 -1.4935] 1.0869
      >>> print(loss.apply({"params": parameters}, features, method="predict"))
      [1 0]

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.AdaptiveLogSoftmaxWithLoss.html
    """

    in_features: int
    n_classes: int
    cutoffs: Sequence[int]
    div_value: float = 4.0
    head_bias: bool = False
    _: dataclasses.KW_ONLY
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Initializer = torch_init
    bias_init: Initializer | None = None

    def _check(self) -> None:
        self._check_layers()
        _checks.count("in_features", self.in_features, 1)
        _checks.count("n_classes", self.n_classes, 2)
        try:
            cutoffs = tuple(map(operator.index, self.cutoffs))
        except TypeError:
            cutoffs = ()
        if not cutoffs or [0, *cutoffs, self.n_classes] != sorted({0, *cutoffs, self.n_classes}):
            rule = f"be increasing integers in [1, {self.n_classes - 1}], at least one"
            _checks.fail(ValueError, "cutoffs", rule, self.cutoffs)
        self.cutoffs = cutoffs
        if not self.div_value > 0:
            _checks.fail(ValueError, "div_value", "be positive", self.div_value)
        for cluster in range(len(cutoffs)):
            if self._features(cluster) < 1:
                rule = f"leave cluster {cluster} at least one of {self.in_features} features"
                _checks.fail(ValueError, "div_value", rule, self.div_value)

    def _features(self, cluster: int) -> int:
        return int(self.in_features // self.div_value ** (cluster + 1))

    def _layers(self, linear: Callable[[int, int, bool], T]) -> tuple[T, list[list[T]]]:
        """The head and the tail, of linear layers (inputs, outputs, whether with a bias)."""
        head = linear(self.in_features, self.cutoffs[0] + len(self.cutoffs), self.head_bias)
        tail = []
        for cluster, (first, end) in enumerate(itertools.pairwise([*self.cutoffs, self.n_classes])):
            features = self._features(cluster)
            projection = linear(self.in_features, features, False)
            tail.append([projection, linear(features, end - first, False)])
        return head, tail

    def _parameters(self) -> dict[str, Any]:
        """Those of `jaxloss.adaptive_log_softmax`, by name."""
        layers: Any = self  # Flax's, which are made of `_layers`.
        bias = layers.head.bias
        parameters = {
            "head": layers.head.weight[...],
            "tail": [(first.weight[...], second.weight[...]) for first, second in layers.tail],
            "head_bias": None if bias is None else bias[...],
        }
        return jax.tree.map(functools.partial(self._promoted, "parameters"), parameters)

    def __call__(self, input_: ArrayLike, target_: ArrayLike) -> AdaptiveOutput:
        return _adaptive_output(self._promoted("input_", input_), target_, self._parameters())

    def log_prob(self, input: ArrayLike) -> jax.Array:
        """Log probabilities of all classes, (N, n_classes)."""
        return _adaptive_log_prob(self._promoted("input", input), self._parameters())

    def predict(self, input: ArrayLike) -> jax.Array:
        """The most probable class of each input, (N,)."""
        return jnp.argmax(self.log_prob(input), -1)


@public(
    labels=("target",),
    name="AdaptiveLogSoftmaxWithLoss",
    names={"inputs": "input_", "labels": "target_"},
)
def _adaptive_output(
    input: ArrayLike, target: ArrayLike, parameters: dict[str, Any]
) -> AdaptiveOutput:
    input = _as_torch(input, parameters)
    losses = core.adaptive_softmax_cross_entropy(input, labels=target, **parameters)
    return AdaptiveOutput(-losses, reduce_as_torch(losses, "mean"))


@public(name="AdaptiveLogSoftmaxWithLoss", names={"inputs": "input"})
def _adaptive_log_prob(input: ArrayLike, parameters: dict[str, Any]) -> jax.Array:
    return core.adaptive_log_softmax(_as_torch(input, parameters), **parameters)


def _as_torch(input: ArrayLike, parameters: dict[str, Any]) -> jax.Array:
    """Inputs of the shapes that torch takes."""
    (input,) = _checks.arrays(inputs=input)
    features = parameters["head"].shape[-1]
    if input.ndim not in (1, 2) or input.shape[-1] != features:
        rule = f"have shape ({features},) or (N, {features})"
        _checks.fail(ValueError, "inputs", rule, input.shape)
    return input
