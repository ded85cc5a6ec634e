"""torch.nn's loss classes: cross entropy of a linear layer's outputs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss import functional as F
from jaxloss._base import checks
from jaxloss._base.reduction import Reduction
from jaxloss.modules.base import value_of
from jaxloss.modules.layers import Initializer, LinearLoss, torch_init


@dataclasses.dataclass(eq=False)
class LinearCrossEntropyLoss(LinearLoss):
    """Cross entropy of a linear layer's outputs without the logits, as
    torch.nn.LinearCrossEntropyLoss; see `jaxloss.functional.linear_cross_entropy`.

    The layer is the module's own: `linear.weight` of shape (C·d1·…·dK, in_features) and
    `linear.bias`, laid out and initialised as in torch. For an embedding tied to the output, call
    the function with its table. The kernel of Flax's Dense or Linear is (in_features, classes):
    load its `.T`, even where it is square and would be accepted as it is.

    Args:
      in_features: size of each input.
      num_classes: C.
      out_features: (d1, …, dK), the positions for which each input has a target.
      bias: whether the layer has a bias.
      reduction: "none", "mean" or "sum".
      weight: one weight per class, shape (C,); a buffer, not trained.
      ignore_index: the class index of targets that do not take part, -100 by default.
      label_smoothing: share of the target spread evenly over the classes, in [0, 1].
      chunk_size: bounds the memory, as in `jaxloss.linear_softmax_cross_entropy`.
      dtype: of the computation, to which inputs and parameters are promoted; by default their
        own. Sums are in float32 at least.
      param_dtype: of the parameters.
      kernel_init: initializer of `linear.weight`, called with a key, a shape and `param_dtype`;
        by default torch's, uniform in ±1/√inputs. The shape is (outputs, inputs) as in torch, so
        that the fan-in is axis -1: `variance_scaling(..., in_axis=-1, out_axis=-2)`. Within Flax's
        `with_partitioning` it says how the parameter is sharded.
      bias_init: likewise for `linear.bias`, called with the shape (outputs,); by default torch's.
      rngs: NNX only: draws the initial parameters; Linen takes a key in `init`.

    Raises:
      ValueError: the reduction is unknown, a size is negative or no integer, `weight` has another
        shape, or `label_smoothing` is not in [0, 1]. A call raises what the function raises.
      TypeError: a dtype is not floating-point, or an initializer is not callable.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax.nnx import Rngs
      >>> from jaxloss import linen, nnx
      >>> weight = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [-1.0, 0.0]])
      >>> features, labels = jnp.array([[1.0, 2.0], [0.0, -1.0]]), jnp.array([1, 3])
      >>> loss = nnx.LinearCrossEntropyLoss(2, 4, rngs=Rngs(0))
      >>> loss.linear.weight[...] = weight
      >>> print(f"{loss(features, labels):.4f}")
      0.8976
      >>> loss = linen.LinearCrossEntropyLoss(2, 4)
      >>> parameters = {"params": {"linear": {"weight": weight}}}
      >>> print(f"{loss.apply(parameters, features, labels):.4f}")
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
        checks.at_least(0, "in_features", self.in_features)
        checks.at_least(1, "num_classes", self.num_classes)
        wanted, weight = (self.num_classes,), value_of(self.weight)
        if weight is not None and jnp.shape(weight) != wanted:
            checks.fail(ValueError, "weight", f"have shape {wanted}", jnp.shape(weight))
        checks.FRACTION.check_concrete("label_smoothing", value_of(self.label_smoothing))

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
