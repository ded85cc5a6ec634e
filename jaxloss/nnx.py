"""torch.nn's losses as Flax NNX modules.

`weight` and `pos_weight` are a `Buffer` each: part of the module's state, so that checkpoints save
them, but not an `nnx.Param`, so that no optimiser trains them. A hyper-parameter that is passed as
an array is a `Buffer` too, such as `margin=jnp.float32(1)` or one computed in a compiled program.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx
from jax.typing import ArrayLike

from jaxloss import modules as _m
from jaxloss._base import checks
from jaxloss.modules import base, layers


class Buffer(nnx.Variable[jax.Array]):
    """An array that is saved but not trained, like torch's buffers: `weight` and `pos_weight`.

    Assigning an array to such an attribute makes a new `Buffer`; an assigned `Buffer` is shared. Of
    any other `nnx.Variable` only the value is taken.

    Args:
      value: the array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import jaxloss.nnx
      >>> class Model(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.linear = nnx.Linear(4, 3, rngs=rngs)
      ...         self.loss = jaxloss.nnx.CrossEntropyLoss(weight=jnp.array([1.0, 2.0, 0.5]))
      >>> model = Model(nnx.Rngs(0))
      >>> graph, trained, fixed = nnx.split(model, nnx.Param, jaxloss.nnx.Buffer)
      >>> print(nnx.to_pure_dict(fixed))
      {'loss': {'weight': Array([1. , 2. , 0.5], dtype=float32)}}

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.parameter.Buffer.html
    """


class _Loss(nnx.Module):
    if not TYPE_CHECKING:

        def __setattr__(self, name: str, value: Any) -> None:
            # Explicitly data or static, since Flax takes a tracer for static, and lets no attribute
            # change from the one to the other by itself.
            if name in base.data_fields(type(self)):
                if isinstance(value, nnx.Variable) and not isinstance(value, Buffer):
                    value = value.get_value()
                if isinstance(value, jax.Array):
                    value = Buffer(value)
                is_data = isinstance(value, Buffer) or name in base.BUFFERS
                value = nnx.data(value) if is_data else nnx.static(value)
            super().__setattr__(name, value)


class L1Loss(_m.L1Loss, _Loss):
    pass


class NLLLoss(_m.NLLLoss, _Loss):
    pass


class NLLLoss2d(_m.NLLLoss2d, _Loss):
    pass


class PoissonNLLLoss(_m.PoissonNLLLoss, _Loss):
    pass


class GaussianNLLLoss(_m.GaussianNLLLoss, _Loss):
    pass


class KLDivLoss(_m.KLDivLoss, _Loss):
    pass


class MSELoss(_m.MSELoss, _Loss):
    pass


class BCELoss(_m.BCELoss, _Loss):
    pass


class BCEWithLogitsLoss(_m.BCEWithLogitsLoss, _Loss):
    pass


class HingeEmbeddingLoss(_m.HingeEmbeddingLoss, _Loss):
    pass


class MultiLabelMarginLoss(_m.MultiLabelMarginLoss, _Loss):
    pass


class SmoothL1Loss(_m.SmoothL1Loss, _Loss):
    pass


class HuberLoss(_m.HuberLoss, _Loss):
    pass


class SoftMarginLoss(_m.SoftMarginLoss, _Loss):
    pass


class CrossEntropyLoss(_m.CrossEntropyLoss, _Loss):
    pass


class MultiLabelSoftMarginLoss(_m.MultiLabelSoftMarginLoss, _Loss):
    pass


class CosineEmbeddingLoss(_m.CosineEmbeddingLoss, _Loss):
    pass


class MarginRankingLoss(_m.MarginRankingLoss, _Loss):
    pass


class MultiMarginLoss(_m.MultiMarginLoss, _Loss):
    pass


class TripletMarginLoss(_m.TripletMarginLoss, _Loss):
    pass


class TripletMarginWithDistanceLoss(_m.TripletMarginWithDistanceLoss, _Loss):
    pass


class CTCLoss(_m.CTCLoss, _Loss):
    pass


class RNNTLoss(_m.RNNTLoss, _Loss):
    pass


class FocalLoss(_m.FocalLoss, _Loss):
    pass


class DiceLoss(_m.DiceLoss, _Loss):
    pass


class _Linear(nnx.Module):
    """A linear layer's parameters in torch's layout."""

    def __init__(
        self, loss: layers.LinearLoss, features: int, outputs: int, bias: bool, rngs: nnx.Rngs
    ):
        if not isinstance(rngs, nnx.Rngs):
            with checks.speaking_for(checks.Caller(type(loss).__name__, {})):
                checks.fail_for_type("rngs", "be a `flax.nnx.Rngs`", rngs)
        shape, dtype = (outputs, features), loss.param_dtype
        self.weight = nnx.Param(loss.kernel_init(rngs.params(), shape, dtype))
        init = loss._bias_init(features)
        self.bias = nnx.Param(init(rngs.params(), shape[:1], dtype)) if bias else nnx.data(None)


@dataclasses.dataclass(eq=False)
class LinearCrossEntropyLoss(_m.LinearCrossEntropyLoss, _Loss):
    rngs: dataclasses.InitVar[nnx.Rngs] = dataclasses.field(kw_only=True)

    def __post_init__(self, rngs: nnx.Rngs) -> None:
        super().__post_init__()
        self.linear = _Linear(self, self.in_features, self._outputs(), self.bias, rngs)

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        bias = self.linear.bias
        return self._loss(
            self.linear.weight[...], None if bias is None else bias[...], input, target
        )


@dataclasses.dataclass(eq=False)
class AdaptiveLogSoftmaxWithLoss(_m.AdaptiveLogSoftmaxWithLoss, _Loss):
    rngs: dataclasses.InitVar[nnx.Rngs] = dataclasses.field(kw_only=True)

    def __post_init__(self, rngs: nnx.Rngs) -> None:
        super().__post_init__()

        def linear(features: int, outputs: int, bias: bool) -> _Linear:
            return _Linear(self, features, outputs, bias, rngs)

        self.head, tail = self._layers(linear)
        self.tail = nnx.List(map(nnx.List, tail))


class InfoNCELoss(_m.InfoNCELoss, _Loss):
    def __post_init__(self) -> None:
        super().__post_init__()
        self.logit_scale = nnx.Param(self._first_scale())

    def __call__(
        self, x1: ArrayLike, x2: ArrayLike, *, where: ArrayLike | None = None
    ) -> jax.Array:
        return self._loss(self.logit_scale[...], x1, x2, where)


class SigmoidContrastiveLoss(_m.SigmoidContrastiveLoss, _Loss):
    def __post_init__(self) -> None:
        super().__post_init__()
        self.logit_scale = nnx.Param(self._first_scale())
        self.logit_bias = nnx.Param(self._first_bias())

    def __call__(
        self, x1: ArrayLike, x2: ArrayLike, *, where: ArrayLike | None = None
    ) -> jax.Array:
        return self._loss(self.logit_scale[...], self.logit_bias[...], x1, x2, where)
