"""What the classes share: torch's arguments as fields, arrays among them, the legacy reduction."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.core
import numpy as np

from jaxloss._base import checks
from jaxloss.functional._torch import legacy_reduction

# Fields that hold an array, and numbers that a program may compute. An array in one of them is
# data: `jaxloss.nnx` keeps it in the state, `jaxloss.linen` as a constant.
BUFFERS = frozenset({"weight", "pos_weight"})
NUMBERS = frozenset("margin eps beta delta alpha gamma smooth label_smoothing ignore_index".split())


def value_of(field: Any) -> Any:
    """What a field stands for, out of the container that a Flax module keeps an array in."""
    return field.get_value() if hasattr(field, "get_value") else field


@functools.cache
def _arguments(cls: type) -> frozenset[str]:
    """torch's constructor arguments, without the fields that a user's subclass adds."""
    plain: Any = next(c for c in cls.__mro__ if c.__module__.startswith(f"{__package__}."))
    return frozenset(field.name for field in dataclasses.fields(plain))


def data_fields(cls: type) -> frozenset[str]:
    """Those of torch's arguments that may be arrays; a name that a user adds is the user's own."""
    return _arguments(cls) & (BUFFERS | NUMBERS)


def _settled(name: str, value: Any) -> Any:
    """What a module keeps of an argument: data as one array, everything else as Python values."""
    if name in BUFFERS:
        return None if value is None else checks.buffer(name, value)
    if not isinstance(value, jax.Array | np.ndarray):
        return value
    if name in NUMBERS:
        return checks.buffer(name, value)
    if isinstance(value, jax.core.Tracer):
        rule = "be a Python value, for it shapes the computation"
        checks.fail(TypeError, name, rule, "an array")
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
                with checks.speaking_for(checks.Caller(type(self).__name__, {})):
                    value = _settled(name, value)
            super().__setattr__(name, value)

    def __post_init__(self) -> None:
        # Not every loss has them as fields, and a user's subclass may have a method of that name.
        fields = vars(self)
        size_average, reduce = fields.get("size_average"), fields.get("reduce")
        if size_average is not None or reduce is not None:
            self.reduction = legacy_reduction(size_average, reduce, stacklevel=3)
            self.size_average = self.reduce = None
        with checks.speaking_for(checks.Caller(type(self).__name__, {})):
            self._check()
        then = getattr(super(), "__post_init__", None)
        if then:
            then()

    def _check(self) -> None:
        checks.one_of("reduction", self.reduction, ("none", "mean", "sum"))
