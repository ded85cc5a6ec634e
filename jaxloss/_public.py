"""What makes a function public: it is compiled once, and its errors speak in its own words."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
from jax.extend.core import get_opaque_trace_state

from jaxloss import _checks

P = ParamSpec("P")
R = TypeVar("R")


def public(
    *,
    static: tuple[str, ...] = (),
    domain: Mapping[str, _checks.Domain] | None = None,
    absent_at_zero: tuple[str, ...] = (),
    names: Mapping[str, str] | None = None,
    name: str | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compiles a function and keeps its signature.

    Called from inside another public function it runs as plain Python: the outer one is compiled
    already, and it is the outer one that the user called and wants to see named in an error.

    Args:
      static: arguments that shape the computation; the others may be traced.
      domain: the values that hyper-parameters may take; a Python number outside is a ValueError
        at the call, a traced one an error under checkify.
      absent_at_zero: hyper-parameters whose term a Python 0 leaves out of the compiled program.
      names: this function's names for the arguments of the functions it calls.
      name: the name in errors, where it is not the function's own.
    """
    domain = domain or {}

    def decorate(fun: Callable[P, R]) -> Callable[P, R]:
        caller = _checks.Caller(name or fun.__name__, names or {})
        positions = {arg: i for i, arg in enumerate(inspect.signature(fun).parameters)}
        positions = {arg: positions[arg] for arg in (*domain, *static)}

        def given(argument: str, args: tuple, kwargs: dict[str, Any]) -> Any:
            """The value passed for `argument`; None stands for the default, which is sound."""
            position = positions[argument]
            return args[position] if position < len(args) else kwargs.get(argument)

        def program(caller: _checks.Caller) -> Callable[P, R]:
            @functools.wraps(fun)
            def traced(*args: P.args, **kwargs: P.kwargs) -> R:
                with _checks.speaking_for(caller):
                    for argument, rule in domain.items():
                        value = given(argument, args, kwargs)
                        if value is not None:
                            rule.check_traced(argument, value)
                    return fun(*args, **kwargs)

            return jax.jit(traced, static_argnames=static)

        compiled = program(caller)
        # A program that could be checkified is called the slow way, even where it is not.
        direct = program(dataclasses.replace(caller, checkified=False))

        @functools.wraps(fun)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if _checks.is_nested():
                return fun(*args, **kwargs)
            for argument in absent_at_zero:
                if is_absent(kwargs.get(argument)):
                    del kwargs[argument]
            for argument, rule in domain.items():
                value = given(argument, args, kwargs)
                if isinstance(value, int | float):
                    with _checks.speaking_for(caller):
                        rule.check_concrete(argument, value)
            try:
                return (direct if _is_direct() else compiled)(*args, **kwargs)
            except ValueError:
                for argument in static:
                    value = given(argument, args, kwargs)
                    if isinstance(value, jax.Array):
                        with _checks.speaking_for(caller):
                            rule = "be a Python value, for it shapes the computation"
                            _checks.fail(TypeError, argument, rule, type(value).__name__)
                raise

        return call

    return decorate


_OUTSIDE = get_opaque_trace_state()


def _is_direct() -> bool:
    """Whether the call is from outside of every transformation."""
    return get_opaque_trace_state() == _OUTSIDE


def is_absent(value: object) -> bool:
    """Whether a hyper-parameter listed in `absent_at_zero` leaves its term out."""
    return isinstance(value, int | float) and value == 0
