"""What makes a function public: it is compiled once, and its errors use its own names."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any, ParamSpec, TypeVar

import jax
from jax.extend.core import get_opaque_trace_state

from jaxloss._base import checks, host
from jaxloss._base.arguments import Argument, declared

P = ParamSpec("P")
R = TypeVar("R")

# Advice for arguments that torch's functions have and others may lack, behind the argument that a
# function needs for the advice to help.
_INSTEAD = {
    "reduction": (None, "it returns one loss per example, which `jaxloss.reduce` reduces"),
    "ignore_index": ("where", "`where=` says what takes part"),
}


def public(
    *,
    static: tuple[str, ...] = (),
    labels: tuple[str, ...] = (),
    domain: Mapping[str, checks.Domain] | None = None,
    absent_at_default: tuple[str, ...] = (),
    names: Mapping[str, str] | None = None,
    name: str | None = None,
    aliases: Mapping[str, str] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compiles a function and keeps its signature.

    Called inside another public function it runs as plain Python: the outer function is compiled
    already, and it is the one that the user called and expects to see named in an error.

    Args:
      static: arguments that shape the computation; the others may be traced. Their types have to
        agree, see `arguments.KINDS`.
      labels: integers that point at classes. One that is too large for JAX points at no class; in
        other arguments it is converted to a float.
      domain: the values that hyper-parameters may take; a number outside is a ValueError at the
        call, a traced one an error under checkify.
      absent_at_default: hyper-parameters that leave their term out of the program at the default.
      names: this function's names for the arguments of the functions it calls.
      name: the name in errors, if it is not the function's own.
      aliases: names of another library by which arguments may also be passed, each with the
        argument that it stands for. The decorated function has them as its attribute `aliases`.
    """

    def decorate(fun: Callable[P, R]) -> Callable[P, R]:
        arguments = declared(fun, static, labels, domain or {}, absent_at_default)
        caller = checks.Caller(name or fun.__name__, names or {})
        run = Program(fun, arguments, caller, aliases or {}).run

        @functools.wraps(fun)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return fun(*args, **kwargs) if checks.is_nested() else run(args, kwargs)

        vars(call)["aliases"] = aliases or {}
        return call

    return decorate


class Program:
    """A function as it is compiled for the arguments that it declares."""

    def __init__(
        self,
        fun: Callable,
        arguments: dict[str, Argument],
        caller: checks.Caller,
        aliases: Mapping[str, str],
    ) -> None:
        self.fun, self.arguments, self.caller = fun, arguments, caller
        self.aliases = aliases
        self.signature = inspect.signature(fun)
        parameters = self.signature.parameters.values()
        self.places = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        self.convert = {name: a.convert for name, a in arguments.items()}
        self.labels = [name for name, a in arguments.items() if a.is_label]
        self.numbers = {name: a for name, a in arguments.items() if a.is_number}
        self.not_numbers = arguments.keys() - self.numbers.keys()
        self.places_ahead = len([*itertools.takewhile(self.not_numbers.__contains__, self.places)])
        static = [name for name, a in arguments.items() if a.kind.is_static]
        self.compiled = jax.jit(self._traceable(), static_argnames=static)

    def _traceable(self) -> Callable:
        """The function to compile."""

        @functools.wraps(self.fun)
        def traceable(*args: Any, **kwargs: Any) -> Any:
            with checks.speaking_for(self.caller) as speaking:
                for name, value in self._named(args, kwargs).items():
                    self.arguments[name].check(value)
                return speaking.checked(self.fun(*args, **kwargs))

        return traceable

    def run(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Calls the program, with our own errors in place of those of JAX."""
        if not self.aliases.keys().isdisjoint(kwargs):
            kwargs = self._unaliased(kwargs)
        if not self._is_plain(args, kwargs):
            args, kwargs = self._prepared(args, kwargs)
        try:
            return self.compiled(*args, **kwargs)
        except (TypeError, ValueError) as error:
            if not checks.is_own(error):
                with checks.speaking_for(self.caller):
                    self._explain(args, kwargs)
            raise

    def _unaliased(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by their own names; an alias stays beside its name, to be refused."""
        own = {name: self.aliases.get(name, name) for name in kwargs}
        return {name if own[name] in kwargs else own[name]: value for name, value in kwargs.items()}

    def _named(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(self.places, args, strict=False)) | kwargs

    def _is_plain(self, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Whether JAX takes the arguments as they are, which is quick to see."""
        if len(args) > self.places_ahead or not host.PLAIN.issuperset(map(type, args)):
            return False
        return not kwargs or (
            self.not_numbers.issuperset(kwargs)
            and host.PLAIN.issuperset(map(type, kwargs.values()))
            and kwargs.keys().isdisjoint(self.places[: len(args)])
        )

    def _prepared(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The arguments as JAX takes them, after a look at the numbers that are known."""
        read = get_opaque_trace_state() == _OUTSIDE
        passed = self._named(args, kwargs)
        if len(passed) < len(args) + len(kwargs) or not passed.keys() <= self.arguments.keys():
            self._refuse_misfit(args, kwargs)
        for name, value in passed.items():
            if type(value) not in host.PLAIN:
                passed[name] = self.convert[name](value)
        labels = {a: passed[a] for a in self.labels if type(passed.get(a)) not in host.PLAIN}
        if labels:
            passed |= host.narrowed(labels)
        for name, argument in self.numbers.items():
            if name in passed:
                # In a trace an array may be what checkify was called with, and is checkify's.
                number = host.number(passed[name], read=read)
                if argument.is_absent(number):
                    del passed[name]
                elif not argument.admits(passed[name], number):
                    with checks.speaking_for(self.caller):
                        argument.refuse(passed[name], number)
        # What follows an absent argument is passed by its name.
        ahead = itertools.takewhile(passed.__contains__, self.places[: len(args)])
        return [passed.pop(name) for name in ahead], passed

    def _explain(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Raises in this function's words what JAX said in its own, if the cause is known."""
        self._refuse_misfit(args, kwargs)
        for name, value in self._named(args, kwargs).items():
            self.arguments[name].explain(value)

    def _refuse_misfit(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Lets Python refuse, in its own words, what the signature does not take."""
        with contextlib.suppress(TypeError):
            self.signature.bind(*args, **kwargs)
            return
        try:
            self.fun(*args, **kwargs)
        except TypeError as error:
            words = str(error)
            for name, (needed, instead) in _INSTEAD.items():
                helps = needed is None or needed in self.arguments
                if name in kwargs and name not in self.arguments and helps:
                    words = words.partition(". Did you mean")[0]  # It did not.
                    words += f"; {instead}"
            raise TypeError(words) from None


# A thread has a state of its own, also where the package is first imported inside of a trace.
with futures.ThreadPoolExecutor(1) as _thread:
    _OUTSIDE = _thread.submit(get_opaque_trace_state).result()
