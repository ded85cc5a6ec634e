"""torch.nn's losses as Flax Linen modules.

`weight` and `pos_weight` are constant fields, as is a hyper-parameter that is passed as an array.
Modules that hold equal arrays are equal and hash alike, as `nn.jit` and its kin require. An array
that a compiled program computes is equal only to itself: a module made with it belongs to that
program, as the array does.
"""

import functools
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.core
import numpy as np
from jax.typing import ArrayLike

from jaxloss import modules as _m
from jaxloss.modules import base, layers


class _Constant:
    """An array that hashes and compares by its content, as Linen wants of every field."""

    def __init__(self, array: jax.Array):
        self._array = array

    def get_value(self) -> jax.Array:
        return self._array

    def _key(self) -> Hashable:
        if isinstance(self._array, jax.core.Tracer):
            return id(self._array)  # Its content is not known yet.
        return self._array.shape, str(self._array.dtype), np.asarray(self._array).tobytes()

    def __hash__(self) -> int:
        return hash(self._key())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Constant) and self._key() == other._key()

    # To a reader of the field it is the array.

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def dtype(self) -> np.dtype:
        return self._array.dtype

    @property
    def ndim(self) -> int:
        return self._array.ndim

    def __getitem__(self, key: Any) -> jax.Array:
        return self._array[key]

    def __len__(self) -> int:
        return len(self._array)

    # Linen takes what can be iterated for a container of fields, which a number is not. Iterating
    # by index would never end, for JAX clamps it.
    __iter__ = None

    def __float__(self) -> float:
        return float(self._array)

    def __jax_array__(self) -> jax.Array:
        return self._array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._array, dtype)

    def __repr__(self) -> str:
        return repr(self._array)


class _Fields:
    """Keeps arrays in the fields as constants. No module itself, or Linen would wrap the method."""

    if not TYPE_CHECKING:

        def __setattr__(self, name: str, value: Any) -> None:
            if name in base.data_fields(type(self)) and isinstance(value, jax.Array):
                value = _Constant(value)
            super().__setattr__(name, value)


def _example_in_linen(text: str) -> str:
    """The documentation that the doors share, with Linen in an example that shows NNX alone."""
    about, sign, example = text.partition("Example:")
    return text if "linen" in example else about + sign + example.replace("nnx", "linen")


class _Loss(_Fields, nn.Module):
    def __init_subclass__(cls, **kwargs: Any) -> None:
        if cls.__module__ == __name__ and cls.__doc__:  # Not that of a user's own class.
            cls.__doc__ = _example_in_linen(cls.__doc__)
        for method in {"__call__", "log_prob", "predict"} & {*dir(cls)}:
            setattr(cls, method, getattr(cls, method))  # Linen wraps what the class itself defines.
        super().__init_subclass__(**kwargs)


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


class _Linear(nn.Module):
    """A linear layer's parameters in torch's layout."""

    in_features: int
    out_features: int
    use_bias: bool
    param_dtype: Any
    kernel_init: layers.Initializer
    bias_init: layers.Initializer

    def setup(self) -> None:
        shape, dtype = (self.out_features, self.in_features), self.param_dtype
        self.weight = self.param("weight", self.kernel_init, shape, dtype)
        self.bias = self.param("bias", self.bias_init, shape[:1], dtype) if self.use_bias else None


def _linear(loss: layers.LinearLoss, features: int, outputs: int, bias: bool) -> _Linear:
    init = loss._bias_init(features)
    return _Linear(features, outputs, bias, loss.param_dtype, loss.kernel_init, init)


class LinearCrossEntropyLoss(_m.LinearCrossEntropyLoss, _Loss):
    def setup(self) -> None:
        self.linear = _linear(self, self.in_features, self._outputs(), self.bias)

    def __call__(self, input: ArrayLike, target: ArrayLike) -> jax.Array:
        return self._loss(self.linear.weight, self.linear.bias, input, target)


class AdaptiveLogSoftmaxWithLoss(_m.AdaptiveLogSoftmaxWithLoss, _Loss):
    def setup(self) -> None:
        self.head, self.tail = self._layers(functools.partial(_linear, self))


class InfoNCELoss(_m.InfoNCELoss, _Loss):
    def setup(self) -> None:
        self.logit_scale = self.param("logit_scale", lambda _: self._first_scale())

    def __call__(
        self, x1: ArrayLike, x2: ArrayLike, *, where: ArrayLike | None = None
    ) -> jax.Array:
        return self._loss(self.logit_scale, x1, x2, where)


class SigmoidContrastiveLoss(_m.SigmoidContrastiveLoss, _Loss):
    def setup(self) -> None:
        self.logit_scale = self.param("logit_scale", lambda _: self._first_scale())
        self.logit_bias = self.param("logit_bias", lambda _: self._first_bias())

    def __call__(
        self, x1: ArrayLike, x2: ArrayLike, *, where: ArrayLike | None = None
    ) -> jax.Array:
        return self._loss(self.logit_scale, self.logit_bias, x1, x2, where)
