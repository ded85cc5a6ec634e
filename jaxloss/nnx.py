"""torch.nn's losses as Flax NNX modules.

`weight` and `pos_weight` are arrays of the module's state, so they are saved in a checkpoint, but
no `nnx.Param`, so no optimiser trains them.
"""

import dataclasses

import jax
from flax import nnx
from jax.typing import ArrayLike

from jaxloss import _modules as _m


class L1Loss(_m.L1Loss, nnx.Module):
    pass


class NLLLoss(_m.NLLLoss, nnx.Module):
    pass


class NLLLoss2d(_m.NLLLoss2d, nnx.Module):
    pass


class PoissonNLLLoss(_m.PoissonNLLLoss, nnx.Module):
    pass


class GaussianNLLLoss(_m.GaussianNLLLoss, nnx.Module):
    pass


class KLDivLoss(_m.KLDivLoss, nnx.Module):
    pass


class MSELoss(_m.MSELoss, nnx.Module):
    pass


class BCELoss(_m.BCELoss, nnx.Module):
    pass


class BCEWithLogitsLoss(_m.BCEWithLogitsLoss, nnx.Module):
    pass


class HingeEmbeddingLoss(_m.HingeEmbeddingLoss, nnx.Module):
    pass


class MultiLabelMarginLoss(_m.MultiLabelMarginLoss, nnx.Module):
    pass


class SmoothL1Loss(_m.SmoothL1Loss, nnx.Module):
    pass


class HuberLoss(_m.HuberLoss, nnx.Module):
    pass


class SoftMarginLoss(_m.SoftMarginLoss, nnx.Module):
    pass


class CrossEntropyLoss(_m.CrossEntropyLoss, nnx.Module):
    pass


class MultiLabelSoftMarginLoss(_m.MultiLabelSoftMarginLoss, nnx.Module):
    pass


class CosineEmbeddingLoss(_m.CosineEmbeddingLoss, nnx.Module):
    pass


class MarginRankingLoss(_m.MarginRankingLoss, nnx.Module):
    pass


class MultiMarginLoss(_m.MultiMarginLoss, nnx.Module):
    pass


class TripletMarginLoss(_m.TripletMarginLoss, nnx.Module):
    pass


class TripletMarginWithDistanceLoss(_m.TripletMarginWithDistanceLoss, nnx.Module):
    pass


class CTCLoss(_m.CTCLoss, nnx.Module):
    pass


class _Linear(nnx.Module):
    """A linear layer's parameters in torch's layout."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool, rngs: nnx.Rngs):
        shape = out_features, in_features
        self.weight = nnx.Param(_m.linear_init(rngs.params(), shape, in_features))
        self.bias = (
            nnx.Param(_m.linear_init(rngs.params(), shape[:1], in_features)) if bias else None
        )


@dataclasses.dataclass(eq=False)
class LinearCrossEntropyLoss(_m.LinearCrossEntropyLoss, nnx.Module):
    rngs: dataclasses.InitVar[nnx.Rngs] = dataclasses.field(kw_only=True)

    def __post_init__(self, rngs: nnx.Rngs) -> None:
        super().__post_init__()
        self.linear = _Linear(self.in_features, self._outputs(), bias=self.bias, rngs=rngs)

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        bias = self.linear.bias
        return self._loss(
            self.linear.weight[...], None if bias is None else bias[...], input, target
        )


@dataclasses.dataclass(eq=False)
class AdaptiveLogSoftmaxWithLoss(_m.AdaptiveLogSoftmaxWithLoss, nnx.Module):
    rngs: dataclasses.InitVar[nnx.Rngs] = dataclasses.field(kw_only=True)

    def __post_init__(self, rngs: nnx.Rngs) -> None:
        super().__post_init__()

        def linear(features: int, outputs: int, bias: bool) -> _Linear:
            return _Linear(features, outputs, bias=bias, rngs=rngs)

        self.head, tail = self._layers(linear)
        self.tail = nnx.List(map(nnx.List, tail))
