"""What makes a function public: it is compiled once, and its errors speak in its own words."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, ParamSpec, TypeVar

import jax
import numpy as np
from jax.extend.core import get_opaque_trace_state

from jaxloss._base import checks, host

P = ParamSpec("P")
R = TypeVar("R")


def public(
    *,
    static: tuple[str, ...] = (),
    labels: tuple[str, ...] = (),
    domain: Mapping[str, checks.Domain] | None = None,
    absent_at_default: tuple[str, ...] = (),
    names: Mapping[str, str] | None = None,
    name: str | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compiles a function and keeps its signature.

    Called from inside another public function it runs as plain Python: the outer one is compiled
    already, and it is the outer one that the user called and wants to see named in an error.

    Args:
      static: arguments that shape the computation; the others may be traced.
      labels: integers that point at classes. One too large for JAX points at none, where among
        other arguments it is converted to a float.
      domain: the values that hyper-parameters may take; a number outside is a ValueError at the
        call, a traced one an error under checkify.
      absent_at_default: hyper-parameters whose term the default leaves out of the compiled program.
      names: this function's names for the arguments of the functions it calls.
      name: the name in errors, where it is not the function's own.
    """
    domain = domain or {}

    def decorate(fun: Callable[P, R]) -> Callable[P, R]:
        caller = checks.Caller(name or fun.__name__, names or {})
        signature = inspect.signature(fun)
        parameters = signature.parameters
        places = [a for a, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        convert = {a: converter(p, static, labels) for a, p in parameters.items()}
        # Arguments that are numbers, which are looked at where they are known.
        powers = [a for a in static if parameters[a].annotation in ("int", "float")]
        numbers = [*dict.fromkeys((*domain, *absent_at_default, *powers))]
        no_numbers = convert.keys() - set(numbers)
        settled = min([len(places), *(places.index(a) for a in numbers if a in places)])
        required = [
            a for a, p in parameters.items() if p.default is p.empty and p.annotation == "ArrayLike"
        ]

        flags = [a for a in static if parameters[a].annotation == "bool"]

        def refuse(args: tuple, kwargs: dict[str, Any]) -> NoReturn:
            """Lets Python refuse, in its own words, what the signature does not take."""
            try:
                fun(*args, **kwargs)
            except TypeError as error:
                words = str(error)
                if "reduction" in kwargs and "reduction" not in parameters:
                    words = words.partition(". Did you mean")[0]  # It did not.
                    words += "; it returns one loss per example, which `jaxloss.reduce` reduces"
                raise TypeError(words) from None
            raise AssertionError("Called with what does not fit its signature.")

        def prepare(args: tuple, kwargs: dict[str, Any], is_direct: bool) -> Any:
            """The arguments as JAX takes them, after a look at the numbers that are known."""
            passed = dict(zip(places, args, strict=False))
            if len(args) > len(places) or not passed.keys().isdisjoint(kwargs):
                refuse(args, kwargs)
            passed |= kwargs
            if not passed.keys() <= convert.keys():
                refuse(args, kwargs)
            for argument, value in passed.items():
                if type(value) not in host.PLAIN:
                    passed[argument] = convert[argument](value)
            given = {a: passed[a] for a in labels if type(passed.get(a)) not in host.PLAIN}
            if given:
                passed |= host.narrowed(given)
            for argument in numbers:
                if argument not in passed:
                    continue
                # In a trace an array may be what checkify was called with, and is checkify's.
                number = host.number(passed[argument], read=is_direct)
                if argument in absent_at_default and number == parameters[argument].default:
                    del passed[argument]
                elif number is None and _is_complex(passed[argument]):
                    with checks.speaking_for(caller):
                        checks.fail_for_complex(argument, passed[argument])
                elif argument in domain and not (number is None or domain[argument].holds(number)):
                    with checks.speaking_for(caller):
                        domain[argument].check_concrete(argument, number)
            return tuple(passed.pop(argument) for argument in places[: len(args)]), passed

        def explain(args: tuple, kwargs: dict[str, Any]) -> None:
            """Raises in this function's words what JAX said in its own, as far as it is known."""
            passed = dict(zip(places, args, strict=False)) | kwargs
            for argument in (argument for argument in static if argument in passed):
                rule = "be a Python value, for it shapes the computation"
                if isinstance(passed[argument], jax.Array):
                    checks.fail(TypeError, argument, rule, "an array")
                if passed[argument].__hash__ is None:
                    rule = "be hashable, for it shapes the computation"
                    checks.fail(TypeError, argument, rule, repr(passed[argument]))
            checks.refuse_what_is_no_array(
                {
                    argument: (value, expectation(parameters[argument]))
                    for argument, value in passed.items()
                    if value is not None and argument not in static
                },
                {argument for argument in passed if is_array(parameters[argument])},
            )

        def program(caller: checks.Caller) -> Callable[P, R]:
            @functools.wraps(fun)
            def traced(*args: P.args, **kwargs: P.kwargs) -> R:
                with checks.speaking_for(caller):
                    passed: dict[str, Any] = dict(zip(places, args, strict=False)) | kwargs
                    for argument in required:
                        if argument in passed and passed[argument] is None:
                            checks.fail_for_type(argument, "be an array", None)
                    for argument in flags:
                        checks.one_of(argument, passed.get(argument, False), (False, True))
                    for argument, rule in domain.items():
                        if passed.get(argument) is not None:
                            rule.check_traced(argument, passed[argument])
                    return fun(*args, **kwargs)

            return jax.jit(traced, static_argnames=static)

        compiled = program(caller)
        # A program that could be checkified is called the slow way, even where it is not.
        direct = program(dataclasses.replace(caller, checkified=False))

        @functools.wraps(fun)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if checks.is_nested():
                return fun(*args, **kwargs)
            is_direct = _is_direct()
            plain = (
                len(args) <= settled
                and host.PLAIN.issuperset(map(type, args))
                and host.PLAIN.issuperset(map(type, kwargs.values()))
                and no_numbers.issuperset(kwargs)
                and kwargs.keys().isdisjoint(places[: len(args)])
            )
            if not plain:
                args, kwargs = prepare(args, kwargs, is_direct)
            try:
                return (direct if is_direct else compiled)(*args, **kwargs)
            except (TypeError, ValueError) as error:
                if not str(error).startswith(f"{caller.function}: `"):
                    with checks.speaking_for(caller):
                        explain(args, kwargs)
                raise

        return call

    return decorate


def converter(
    parameter: inspect.Parameter, static: tuple[str, ...], labels: tuple[str, ...]
) -> Callable[[Any], Any]:
    """What becomes of an argument before it is compiled for."""
    if parameter.name in static:
        return host.python
    if parameter.name in labels:
        return host.integers
    return host.array if is_array(parameter) else lambda value: value


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


def _is_complex(value: Any) -> bool:
    return isinstance(value, complex) or (hasattr(value, "dtype") and np.iscomplexobj(value))


def is_absent(value: object) -> bool:
    """Whether a hyper-parameter listed in `absent_at_default` leaves its term out."""
    return isinstance(value, int | float) and value == 0
