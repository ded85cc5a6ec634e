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
        signature = inspect.signature(fun)
        parameters = signature.parameters
        positions = {arg: i for i, arg in enumerate(parameters)}
        positions = {arg: positions[arg] for arg in (*domain, *static)}
        required = [
            a for a, p in parameters.items() if p.default is p.empty and p.annotation == "ArrayLike"
        ]

        flags = [a for a in static if parameters[a].annotation == "bool"]

        def given(argument: str, args: tuple, kwargs: dict[str, Any]) -> Any:
            """The value passed for `argument`; None stands for the default, which is sound."""
            position = positions[argument]
            return args[position] if position < len(args) else kwargs.get(argument)

        def explain(args: tuple, kwargs: dict[str, Any]) -> None:
            """Raises in this function's words what JAX said in its own, as far as it is known."""
            try:
                bound = signature.bind(*args, **kwargs).arguments
            except TypeError:
                return  # Python's words for a wrong call are good.
            for argument in (argument for argument in static if argument in bound):
                rule = "be a Python value, for it shapes the computation"
                if isinstance(bound[argument], jax.Array):
                    _checks.fail(TypeError, argument, rule, "an array")
                if bound[argument].__hash__ is None:
                    rule = "be hashable, for it shapes the computation"
                    _checks.fail(TypeError, argument, rule, repr(bound[argument]))
            _checks.refuse_what_is_no_array(
                {
                    argument: (value, expectation(parameters[argument]))
                    for argument, value in bound.items()
                    if value is not None and argument not in static
                },
                {argument for argument in bound if is_array(parameters[argument])},
            )

        def program(caller: _checks.Caller) -> Callable[P, R]:
            @functools.wraps(fun)
            def traced(*args: P.args, **kwargs: P.kwargs) -> R:
                with _checks.speaking_for(caller):
                    passed = dict(zip(parameters, args, strict=False)) | kwargs
                    for argument in required:
                        if argument in passed and passed[argument] is None:
                            _checks.fail_for_type(argument, "be an array", None)
                    for argument in flags:
                        _checks.one_of(argument, passed.get(argument, False), (False, True))
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
            except (TypeError, ValueError) as error:
                if not str(error).startswith(f"{caller.function}: `"):
                    with _checks.speaking_for(caller):
                        explain(args, kwargs)
                raise

        return call

    return decorate


def is_array(parameter: inspect.Parameter) -> bool:
    """Whether an argument is one array or number, by its annotation, and not a tree of them."""
    return parameter.annotation in ("ArrayLike", "ArrayLike | None")


def expectation(parameter: inspect.Parameter) -> str:
    """What an argument must be that is no array: a number where the default is one."""
    return "be a number" if isinstance(parameter.default, int | float) else "be an array"


_OUTSIDE = get_opaque_trace_state()


def _is_direct() -> bool:
    """Whether the call is from outside of every transformation."""
    return get_opaque_trace_state() == _OUTSIDE


def is_absent(value: object) -> bool:
    """Whether a hyper-parameter listed in `absent_at_zero` leaves its term out."""
    return isinstance(value, int | float) and value == 0
