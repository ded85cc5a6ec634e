"""What the classes with linear layers share: dtypes, and torch's initial parameters."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from jaxloss._base import checks
from jaxloss.modules.base import Loss

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
            check_floating("dtype", self.dtype)
        check_floating("param_dtype", self.param_dtype)
        rule = "be an initializer, which takes a key, a shape and a dtype"
        if not callable(self.kernel_init):
            checks.fail(TypeError, "kernel_init", rule, repr(self.kernel_init))
        if self.bias_init is not None and not callable(self.bias_init):
            checks.fail(TypeError, "bias_init", rule, repr(self.bias_init))

    def _bias_init(self, features: int) -> Initializer:
        """For a layer of so many inputs: torch bounds its bias by them, as it does its weights,
        and an initializer is not told them."""
        return self.bias_init or functools.partial(_uniform, features=features)

    def _promoted(self, argument: str, value: Any) -> Any:
        """An input or a parameter in the dtype of the computation."""
        if self.dtype is None or value is None:
            return value
        with checks.speaking_for(checks.Caller(type(self).__name__, {})):
            array = checks.buffer(argument, value)
        # A complex one would lose half of itself; the loss refuses it.
        return array if jnp.iscomplexobj(array) else array.astype(self.dtype)


def check_floating(name: str, dtype: Any) -> None:
    try:
        holds = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    except TypeError:
        holds = False
    if not holds:
        checks.fail(TypeError, name, "be a floating-point dtype", repr(dtype))
