"""Contrastive losses as classes, with a learnt scale and bias."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._base import checks, elementwise, host
from jaxloss._base.reduction import Reduction, reduce
from jaxloss.core.classes.axes import AxisName
from jaxloss.core.contrastive.loss import info_nce_loss, sigmoid_contrastive_loss
from jaxloss.modules.base import Loss
from jaxloss.modules.layers import check_floating


@dataclasses.dataclass(eq=False)
class InfoNCELoss(Loss):
    """InfoNCE with a learnt temperature, the loss of CLIP; see `jaxloss.info_nce_loss`.

    The parameter is `logit_scale`, the logarithm of the scale, 1 / temperature. The scale is held
    at `max_scale`, beyond which the parameter has gradient 0. As CLIP does, clip the parameter to
    log `max_scale` after each step, so that it can come down again. Call with `x1`, `x2` and, by
    keyword, `where`.

    Args:
      temperature: the initial one, above 0.
      max_scale: the largest scale, above 0.
      symmetric: whether to find the row of x1 for each row of x2 as well.
      reduction: "none", "mean" or "sum", over the pairs that take part.
      chunk_size: how many columns of similarities exist at a time, as in the function.
      axis_name: inside `jax.shard_map`, the mesh axis over which the pairs are sharded; the
        reduction is then over the pairs of all devices.
      param_dtype: of the parameter.

    Raises:
      ValueError: the reduction is unknown, or `temperature`, `max_scale` or `chunk_size` is out of
        range. A call raises what the function raises.
      TypeError: `param_dtype` is not floating-point.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxloss import linen, nnx
      >>> images = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
      >>> texts = jnp.array([[0.8, 0.6], [1.0, 0.0], [0.0, 1.0]])
      >>> loss = nnx.InfoNCELoss(temperature=0.5)
      >>> print(f"{loss(images, texts):.4f}, {loss.logit_scale[...]:.4f}")
      0.8675, 0.6931
      >>> loss = linen.InfoNCELoss(temperature=0.5)
      >>> variables = loss.init(jax.random.key(0), images, texts)
      >>> scale = variables["params"]["logit_scale"]
      >>> print(f"{loss.apply(variables, images, texts):.4f}, {scale:.4f}")
      0.8675, 0.6931

    Source: Radford et al., Learning transferable visual models from natural language supervision,
    arXiv:2103.00020.
    """

    _: dataclasses.KW_ONLY
    temperature: float = 0.07
    max_scale: float = 100.0
    symmetric: bool = True
    reduction: Reduction = "mean"
    chunk_size: int | None = None
    axis_name: AxisName = None
    param_dtype: Any = jnp.float32

    def _check(self) -> None:
        super()._check()
        _check_settings(self)
        _check_number("temperature", self.temperature)
        _check_number("max_scale", self.max_scale)
        checks.POSITIVE.check_concrete("temperature", self.temperature)
        checks.POSITIVE.check_concrete("max_scale", self.max_scale)
        if self.temperature * self.max_scale < 1 - 1e-6:  # It would have no gradient.
            rule = f"be 1 / max_scale, {1 / self.max_scale:g}, or more"
            checks.fail(ValueError, "temperature", rule, self.temperature)
        checks.one_of("symmetric", self.symmetric, (False, True))

    def _first_scale(self) -> jax.Array:
        return jnp.asarray(-math.log(self.temperature), self.param_dtype)

    def _loss(
        self, logit_scale: jax.Array, x1: ArrayLike, x2: ArrayLike, where: ArrayLike | None
    ) -> jax.Array:
        logit_scale = logit_scale.astype(checks.wide(logit_scale.dtype))
        largest = math.log(self.max_scale)
        losses = info_nce_loss(
            x1,
            x2,
            temperature=jnp.exp(elementwise.hinge(largest - logit_scale) - largest),
            where=where,
            symmetric=self.symmetric,
            chunk_size=self.chunk_size,
            axis_name=self.axis_name,
        )
        return reduce(losses, self.reduction, where=where, axis_name=self.axis_name)


@dataclasses.dataclass(eq=False)
class SigmoidContrastiveLoss(Loss):
    """The pairwise sigmoid loss with a learnt scale and bias, the loss of SigLIP; see
    `jaxloss.sigmoid_contrastive_loss`.

    The parameters are `logit_scale`, the logarithm of the scale, and `logit_bias`. Call with `x1`,
    `x2` and, by keyword, `where`.

    Args:
      scale: the initial one, above 0.
      bias: the initial one.
      reduction: "none", "mean" (the paper's) or "sum", over the rows that take part.
      chunk_size: how many columns of similarities exist at a time, as in the function.
      axis_name: inside `jax.shard_map`, the mesh axis over which the pairs are sharded; the
        reduction is then over the pairs of all devices.
      param_dtype: of the parameters.

    Raises:
      ValueError: the reduction is unknown, or `scale` or `chunk_size` is out of range. A call
        raises what the function raises.
      TypeError: `param_dtype` is not floating-point.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxloss import linen, nnx
      >>> images = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
      >>> texts = jnp.array([[0.8, 0.6], [1.0, 0.0], [0.0, 1.0]])
      >>> loss = nnx.SigmoidContrastiveLoss()
      >>> print(f"{loss(images, texts):.4f}, {loss.logit_bias[...]}")
      2.1232, -10.0
      >>> loss = linen.SigmoidContrastiveLoss()
      >>> variables = loss.init(jax.random.key(0), images, texts)
      >>> print(f"{loss.apply(variables, images, texts):.4f}, {variables['params']['logit_bias']}")
      2.1232, -10.0

    Source: Zhai et al., Sigmoid loss for language image pre-training, arXiv:2303.15343.
    """

    _: dataclasses.KW_ONLY
    scale: float = 10.0
    bias: float = -10.0
    reduction: Reduction = "mean"
    chunk_size: int | None = None
    axis_name: AxisName = None
    param_dtype: Any = jnp.float32

    def _check(self) -> None:
        super()._check()
        _check_settings(self)
        _check_number("scale", self.scale)
        _check_number("bias", self.bias)
        checks.POSITIVE.check_concrete("scale", self.scale)

    def _first_scale(self) -> jax.Array:
        return jnp.asarray(math.log(self.scale), self.param_dtype)

    def _first_bias(self) -> jax.Array:
        return jnp.asarray(self.bias, self.param_dtype)

    def _loss(
        self,
        logit_scale: jax.Array,
        logit_bias: jax.Array,
        x1: ArrayLike,
        x2: ArrayLike,
        where: ArrayLike | None,
    ) -> jax.Array:
        losses = sigmoid_contrastive_loss(
            x1,
            x2,
            scale=jnp.exp(logit_scale.astype(checks.wide(logit_scale.dtype))),
            bias=logit_bias,
            where=where,
            chunk_size=self.chunk_size,
            axis_name=self.axis_name,
        )
        return reduce(losses, self.reduction, where=where, axis_name=self.axis_name)


def _check_number(name: str, value: Any) -> None:
    if host.number(value) is None:
        checks.fail(TypeError, name, "be a number", type(value).__name__)


def _check_settings(loss: InfoNCELoss | SigmoidContrastiveLoss) -> None:
    check_floating("param_dtype", loss.param_dtype)
    if loss.chunk_size is not None:
        checks.at_least(1, "chunk_size", loss.chunk_size)
