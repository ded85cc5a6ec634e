"""What a public function declares about an argument: how it is taken, and what is refused."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.lax import PrecisionLike
from jax.typing import ArrayLike

from jaxloss._base import checks, host


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """How the arguments of some types are taken."""

    convert: Callable[[Any], Any]  # Before they are compiled for.
    is_static: bool = False


ARRAY, OPTIONAL = Kind(host.array), Kind(host.array)
TREE = Kind(lambda value: value)
FLAG, NUMBER, VALUE = (Kind(host.python, is_static=True) for _ in range(3))
# The types that arguments may have. They tell what is an array, so that a new one has to be entered
# here first.
KINDS: dict[Any, Kind] = {
    ArrayLike: ARRAY,
    ArrayLike | None: OPTIONAL,
    Sequence[tuple[ArrayLike, ArrayLike]]: TREE,
    dict[str, Any]: TREE,
    bool: FLAG,
    int: NUMBER,
    float: NUMBER,
    bool | None: VALUE,
    int | None: VALUE,
    checks.Axis: VALUE,
    str | tuple[str, ...] | None: VALUE,
    PrecisionLike: VALUE,
    Literal: VALUE,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Argument:
    """An argument of a public function."""

    name: str
    kind: Kind
    default: Any
    is_label: bool
    is_absent_at_default: bool
    domain: checks.Domain | None

    @property
    def is_number(self) -> bool:
        """Whether the value is checked where it is known."""
        return self.kind is NUMBER or self.domain is not None or self.is_absent_at_default

    @property
    def convert(self) -> Callable[[Any], Any]:
        """What turns a value into what the program is compiled for."""
        return host.integers if self.is_label else self.kind.convert

    def is_absent(self, number: int | float | None) -> bool:
        """Whether the number leaves its term out."""
        return self.is_absent_at_default and number == self.default

    def admits(self, value: Any, number: int | float | None) -> bool:
        """Whether a value may pass, given the number that it is known to be, or None."""
        if number is not None:
            return self.domain is None or bool(self.domain.holds(number))
        has_dtype = hasattr(value, "dtype") or isinstance(value, complex)
        return not (has_dtype and np.iscomplexobj(value))

    def refuse(self, value: Any, number: int | float | None) -> None:
        """Says why a value may not pass."""
        if number is None or self.domain is None:
            checks.fail_for_complex(self.name, value)
        self.domain.check_concrete(self.name, number)

    def check(self, value: Any) -> None:
        """Refuses a bad value while the program is traced; the value may be a tracer."""
        if self.kind is FLAG:
            checks.one_of(self.name, value, (False, True))
        elif value is None and self.kind is ARRAY and self.default is inspect.Parameter.empty:
            checks.fail_for_type(self.name, "be an array", None)
        elif value is not None and self.domain is not None:
            self.domain.check_traced(self.name, value)

    def explain(self, value: Any) -> None:
        """Refuses what JAX cannot take. Called after JAX has failed in its own words."""
        if not self.kind.is_static:
            expectation = "be a number" if isinstance(self.default, int | float) else "be an array"
            checks.refuse_what_is_no_array(self.name, value, expectation, is_tree=self.kind is TREE)
        elif isinstance(value, jax.Array):
            rule = "be a Python value, for it shapes the computation"
            checks.fail(TypeError, self.name, rule, "an array")
        elif value.__hash__ is None:
            rule = "be hashable, for it shapes the computation"
            checks.fail(TypeError, self.name, rule, repr(value))


def declared(
    fun: Callable,
    static: tuple[str, ...],
    labels: tuple[str, ...],
    domain: Mapping[str, checks.Domain],
    absent_at_default: tuple[str, ...],
) -> dict[str, Argument]:
    """The arguments of a function by name, from its signature and what `call.public` is told."""
    parameters = inspect.signature(fun, eval_str=True).parameters
    unknown = {*static, *labels, *domain, *absent_at_default} - parameters.keys()
    if unknown:
        raise TypeError(f"{fun.__qualname__}: there is no argument {', '.join(sorted(unknown))}")
    return {
        name: Argument(
            name,
            _kind(fun, parameter, name in static),
            parameter.default,
            name in labels,
            name in absent_at_default,
            domain.get(name),
        )
        for name, parameter in parameters.items()
    }


def _kind(fun: Callable, parameter: inspect.Parameter, is_static: bool) -> Kind:
    """The kind of an argument, from its type, which has to agree with what is declared static."""
    type_ = parameter.annotation
    found = KINDS.get(Literal if typing.get_origin(type_) is Literal else type_)
    if found is None or found.is_static != is_static:
        rule = f"have a type of {'static' if is_static else 'traced'} arguments, see `KINDS`"
        got = inspect.formatannotation(type_)
        raise TypeError(f"{fun.__qualname__}: `{parameter.name}` must {rule}, got {got}")
    return found
