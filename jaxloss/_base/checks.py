"""What is refused, and in which words: errors name the function and the argument as called."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxloss._base import host, meshes, xla

T = TypeVar("T")
Axis = int | tuple[int, ...] | None
Shaped = jax.Array | jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True)
class Caller:
    """The public function that the user called, and its own names for the arguments of the core."""

    function: str
    names: Mapping[str, str]


@dataclasses.dataclass(slots=True)
class speaking_for:  # `contextlib` would make a generator of it, at 5 times the time.
    """Makes every error raised inside speak for `caller`."""

    caller: Caller
    conditions: list[tuple[jax.Array, str]] = dataclasses.field(default_factory=list)
    token: contextvars.Token = dataclasses.field(init=False)

    def __enter__(self) -> speaking_for:
        self.token = _speaking.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _speaking.reset(self.token)

    def checked(self, values: T) -> T:
        """The values, tied to the conditions that were required inside."""
        return xla.checked(values, self.conditions)


_speaking: contextvars.ContextVar[speaking_for | None]
_speaking = contextvars.ContextVar("speaking", default=None)


def is_nested() -> bool:
    """Whether a public function is running, so that this call comes from inside the package."""
    return _speaking.get() is not None


@contextlib.contextmanager
def apart() -> Iterator[speaking_for]:
    """For code that is mapped or runs in a branch, whose conditions are known only inside.

    Its `checked` carries them out along with results. Without that they are dropped, which is right
    where the values have been checked outside.
    """
    outer = _speaking.get()
    assert outer is not None
    with speaking_for(outer.caller) as inner:
        yield inner


def _said(argument: str) -> str:
    """The function and the argument as the user knows it: "cross_entropy: `input`"."""
    outer = _speaking.get()
    known = _known_as(argument)
    return known if outer is None else f"{outer.caller.function}: {known}"


def _known_as(argument: str) -> str:
    outer = _speaking.get()
    return f"`{outer.caller.names.get(argument, argument) if outer else argument}`"


def fail(error: type[Exception], argument: str, expectation: str, got: object) -> NoReturn:
    failure = error(f"{_said(argument)} must {expectation}, got {got}")
    vars(failure)[_OWN] = True
    # Alone: what failed on the way here, in JAX's words, would stand above it.
    raise failure from None


def is_own(error: Exception) -> bool:
    """Whether an error is one of `fail`, and not of JAX or Python."""
    return _OWN in vars(error)


_OWN = "is_of_jaxloss"


def fail_for_type(argument: str, expectation: str, value: object) -> NoReturn:
    """A TypeError for something that is neither an array nor a number."""
    kind = type(value)
    got = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    if isinstance(value, np.ma.MaskedArray):
        expectation += " without a mask"
        got += ": pass its `data`, and `where=~mask` to a function that takes it"
    elif isinstance(value, np.ndarray):
        expectation, got = f"{expectation} of numbers", f"{got} of dtype {value.dtype}"
    elif hasattr(value, "__array__"):
        expectation += " of JAX or numpy"  # Another library's, which has to be converted.
    if isinstance(value, list | tuple):
        got = f"a {got} that does not make one"
    fail(TypeError, argument, expectation, got)


def fail_for_complex(argument: str, value: object) -> NoReturn:
    fail(TypeError, argument, "be real", getattr(value, "dtype", value))


def refuse_what_is_no_array(name: str, value: Any, expectation: str, *, is_tree: bool) -> None:
    """Refuses what JAX takes neither as an array nor, if `is_tree`, as a tree of arrays."""
    for leaf in jax.tree.leaves(value):
        if not _abstract(lambda x: x, leaf):
            fail_for_type(name, expectation, leaf)
    if not (is_tree or value is None or _abstract(jnp.asarray, value)):
        fail_for_type(name, expectation, value)


def _abstract(function: Callable[[Any], Any], value: object) -> bool:
    """Whether the function takes what has the shapes and dtypes of `value`."""
    try:
        jax.eval_shape(function, value)
    except (TypeError, ValueError):
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Domain:
    """The values that a hyper-parameter may take."""

    words: str
    holds: Callable[[Any], Any]

    def check_concrete(self, argument: str, value: object) -> None:
        """An error at once for a number that is known."""
        number = host.number(value)
        if number is not None and not self.holds(number):
            fail(ValueError, argument, f"be {self.words}", value)

    def check_traced(self, argument: str, value: ArrayLike) -> None:
        require(self.holds(jnp.asarray(value)), argument, f"be {self.words}")


POSITIVE = Domain("positive", lambda x: x > 0)
NON_NEGATIVE = Domain("0 or more", lambda x: x >= 0)
FRACTION = Domain("between 0 and 1", lambda x: (x >= 0) & (x <= 1))


def require(
    holds: jax.Array, argument: str, expectation: str, where: jax.Array | None = None
) -> None:
    """A condition on values: an error under `checkify.checkify`, nothing at all without it.

    It belongs to the public function that is running; inside a map or a branch see `apart`.
    """
    if where is not None:
        holds = holds | ~where
    if outer := _speaking.get():
        outer.conditions.append((holds, f"{_said(argument)} must {expectation}"))


def arrays(*, complex_too: bool = False, **values: ArrayLike) -> list[jax.Array]:
    """Converts to arrays of the one dtype that the loss is computed in.

    The first must be floating-point; booleans and integers among the others follow it, such as 0/1
    or ±1 targets. Half precision is for storage: it is widened to float32 here, and autodiff of
    that conversion returns the gradient in the dtype that came in. Arrays of the first one's shape
    are spread over devices as the first is.
    """
    first, *others = _of_one_dtype(complex_too, values)
    return [first, *(meshes.laid_as(x, first) if x.shape == first.shape else x for x in others)]


def _of_one_dtype(complex_too: bool, values: Mapping[str, ArrayLike]) -> list[jax.Array]:
    given = {name: array(name, value) for name, value in values.items()}
    kind = jnp.inexact if complex_too else jnp.floating
    wanted = "floating-point or complex" if complex_too else "floating-point"
    for position, (name, value) in enumerate(given.items()):
        exact = jnp.issubdtype(value.dtype, jnp.integer) or value.dtype == bool
        if not jnp.issubdtype(value.dtype, kind) and not (position and exact):
            fail(TypeError, name, f"be a {wanted} array", value.dtype)
    dtype = jnp.result_type(*(w for w in map(_widened, given.values()) if w is not None))
    return [value.astype(dtype) for value in given.values()]


def operands(**values: ArrayLike) -> list[jax.Array]:
    """Converts to arrays of one dtype, leaving halves as they are if all are of one kind.

    Others are widened as in `arrays`, which is exact. This is for the operands of a matrix product,
    and for arrays that are read several times and widened at each reading.
    """
    given = {name: array(name, value) for name, value in values.items()}
    (dtype, *others) = {value.dtype for value in given.values()}
    widened = _of_one_dtype(False, given)
    return widened if others or jnp.finfo(dtype).bits < 16 else [*given.values()]


def wide(dtype: Any) -> Any:
    """The dtype to compute in with arrays of this dtype."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else dtype


def follower(name: str, value: ArrayLike | None, like: jax.Array) -> jax.Array | None:
    """Weights: real numbers in the dtype that `like` is computed in. None stays None."""
    return None if value is None else _following(name, value, like)


def _following(
    name: str, value: ArrayLike, like: jax.Array, expectation: str = "be an array"
) -> jax.Array:
    value = array(name, value, expectation)
    if jnp.iscomplexobj(value):
        fail_for_complex(name, value)
    return value.astype(wide(like.real.dtype))


def buffer(name: str, value: Any) -> jax.Array:
    """What a module keeps, as an array; it refuses what a call would refuse."""
    if not all(_abstract(lambda x: x, leaf) for leaf in jax.tree.leaves(value)):
        fail_for_type(name, "be an array", value)
    return array(name, value)


def at_least(least: int, name: str, value: Any) -> None:
    """Refuses all but integers of `least` or more."""
    try:
        holds = operator.index(value) >= least
    except TypeError:
        holds = False
    if not holds:
        fail(ValueError, name, f"be an integer of {least} or more", repr(value))


def array(name: str, value: ArrayLike | None, expectation: str = "be an array") -> jax.Array:
    try:
        if value is not None:
            return jnp.asarray(host.listed(value))
    except (TypeError, ValueError):
        pass
    fail_for_type(name, expectation, value)


def _widened(value: jax.Array) -> Any:
    """What `value` contributes to the common dtype: float32 for halves, nothing for integers."""
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        return None
    widest = wide(value.dtype)
    # The array itself, since a weakly typed one must not widen the others.
    return value if widest == value.dtype else widest


def same_shape(**values: jax.Array) -> None:
    """All arrays must have the shape of the first."""
    (first, like), *others = values.items()
    for name, value in others:
        if value.shape != like.shape:
            fail(ValueError, name, f"have {_known_as(first)}'s shape {like.shape}", value.shape)


def broadcast(
    name: str, value: jax.Array, like: jax.Array, *, same_rank: bool = False
) -> jax.Array:
    """`value` broadcast to the shape of `like`, which it must not enlarge."""
    if not _fits(value, like, same_rank=same_rank):
        rank = f" with {like.ndim} dimensions" if same_rank else ""
        got = f"{value.shape}{_with_axes(name, value, like)}"
        fail(ValueError, name, f"broadcast to {like.shape}{rank}", got)
    return jnp.broadcast_to(value, like.shape)


def _fits(value: jax.Array, like: Shaped, *, same_rank: bool) -> bool:
    if value.ndim > like.ndim or (same_rank and value.ndim < like.ndim):
        return False
    sizes = zip(reversed(value.shape), reversed(like.shape), strict=False)
    return all(size in (1, full) for size, full in sizes)


def _with_axes(name: str, value: jax.Array, like: Shaped) -> str:
    """How to write a value whose last dimensions are missing."""
    missing = like.ndim - value.ndim
    if missing <= 0 or not value.ndim or value.shape != like.shape[: value.ndim]:
        return ""
    return f": write `{name}[{', '.join(['...', *['None'] * missing])}]`"


def number(name: str, value: ArrayLike, like: jax.Array) -> jax.Array:
    """One number, in the dtype that `like` is computed in."""
    value = _following(name, value, like, "be a number")
    if value.ndim:
        fail(ValueError, name, "be a number", f"shape {value.shape}")
    return value


def hyper_parameter(name: str, value: ArrayLike, like: jax.Array) -> jax.Array:
    """A number, or one for each element of `like`, in the dtype that this is computed in."""
    value = _following(name, value, like, "be a number or an array")
    if value.shape not in ((), like.shape):
        fail(ValueError, name, f"be a number or have shape {like.shape}", value.shape)
    return value


def mask(where: ArrayLike | None, name: str, like: Shaped) -> jax.Array | None:
    """`where` in numpy's one meaning: boolean, the rank of `like`, broadcastable to it."""
    if where is None:
        return None
    where = array("where", where)
    if where.dtype != bool:
        hint = "write `mask > 0`, or pass `weights=` to `reduce`"
        fail(TypeError, "where", "be a boolean array", f"{where.dtype}: {hint}")
    if not _fits(where, like, same_rank=True):
        rule = f"have the rank of {_known_as(name)} and broadcast to its shape {like.shape}"
        everything = "" if where.ndim else ": leave it out where everything takes part"
        got = f"{where.shape}{everything or _with_axes('where', where, like)}"
        fail(ValueError, "where", rule, got)
    return meshes.laid_as(where, like) if isinstance(like, jax.Array) else where


def axes(axis: Axis, like: Shaped, name: str) -> tuple[int, ...]:
    """`axis` as a tuple of distinct non-negative numbers."""
    listed = tuple(range(like.ndim)) if axis is None else axis
    try:
        listed = tuple(map(operator.index, listed if isinstance(listed, tuple) else (listed,)))
    except TypeError:
        fail(TypeError, "axis", "be an integer, a tuple of integers or None", repr(axis))
    found = tuple(a % like.ndim if like.ndim else a for a in listed)
    if any(not -like.ndim <= a < like.ndim for a in listed) or len(set(found)) < len(found):
        rule = f"name distinct dimensions of {_known_as(name)}, which has {like.ndim}"
        fail(ValueError, "axis", rule, axis)
    return found


def labels(name: str, value: ArrayLike, shape: tuple[int, ...], hint: str = "") -> jax.Array:
    """Integer labels of the given shape, in a signed dtype that can also count the classes."""
    value = host.integers(value)
    value = array(name, host.narrowed({name: value}).get(name, value))
    if not jnp.issubdtype(value.dtype, jnp.integer):
        fail(TypeError, name, "be an array of integers", value.dtype)
    if value.shape != shape:
        fail(ValueError, name, f"have shape {shape}", f"{value.shape}{hint}")
    signed = jnp.int64 if value.dtype.itemsize == 8 else jnp.int32
    if jnp.issubdtype(value.dtype, jnp.unsignedinteger) and value.dtype.itemsize >= 4:
        value = jnp.minimum(value, jnp.iinfo(signed).max)  # What is larger is no class either.
    return value.astype(signed)


def one_of(name: str, value: object, allowed: tuple[Any, ...]) -> None:
    value = host.python(value)
    if isinstance(value, complex):  # Which may equal a real number.
        fail_for_complex(name, value)
    if value not in allowed:
        listed = ", ".join(map(repr, allowed[:-1])) + f" or {allowed[-1]!r}"
        fail(ValueError, name, f"be {listed}", repr(value))
