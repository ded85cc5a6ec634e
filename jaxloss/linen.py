"""torch.nn's losses as Flax Linen modules.

`weight` and `pos_weight` are constant fields. Modules that hold equal arrays are equal and hash
alike, so that `nn.jit` and its kin can tell them apart.
"""

from typing import Any

import flax.linen as nn
import jax
from jax.typing import ArrayLike

from jaxloss import _modules as _m


class _Loss(nn.Module):
    def __init_subclass__(cls, **kwargs: Any) -> None:
        for method in {"__call__", "log_prob", "predict"} & {*dir(cls)}:
            setattr(cls, method, getattr(cls, method))  # Linen wraps what the class itself defines.
        super().__init_subclass__(**kwargs)

    def __post_init__(self) -> None:
        for buffer in ("weight", "pos_weight"):
            array = getattr(self, buffer, None)
            if array is not None:
                setattr(self, buffer, _m.Constant(array))
        super().__post_init__()


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


class _Linear(nn.Module):
    """A linear layer's parameters in torch's layout."""

    in_features: int
    out_features: int
    use_bias: bool

    def setup(self) -> None:
        shape = self.out_features, self.in_features
        self.weight = self.param("weight", _m.linear_init, shape, self.in_features)
        self.bias = (
            self.param("bias", _m.linear_init, shape[:1], self.in_features)
            if self.use_bias
            else None
        )


class LinearCrossEntropyLoss(_m.LinearCrossEntropyLoss, _Loss):
    def setup(self) -> None:
        self.linear = _Linear(self.in_features, self._outputs(), self.bias)

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return self._loss(self.linear.weight, self.linear.bias, input, target)


class AdaptiveLogSoftmaxWithLoss(_m.AdaptiveLogSoftmaxWithLoss, _Loss):
    def setup(self) -> None:
        self.head, self.tail = self._layers(_Linear)
