"""Wrong calls, wrong declarations, and calls from anywhere: what every public function does."""

# pyright: reportArgumentType=false, reportCallIssue=false
# Wrong calls are among the subjects.

import inspect
import pathlib
import subprocess
import sys

import chex
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import pytest
from cases import LOSSES
from jax.experimental import checkify
from jax.typing import ArrayLike

import jaxloss
from jaxloss import functional as F
from jaxloss._base import checks
from jaxloss._base.call import public

X = jnp.ones((2, 3))


FUNCTIONS = {
    (f"{door}.{function.__name__}"): function
    for door, function in [
        *(("core", getattr(jaxloss, loss.core)) for loss in LOSSES),
        *(("functional", getattr(F, loss.torch)) for loss in LOSSES if loss.torch),
        ("core", jaxloss.adaptive_softmax_cross_entropy),
        ("core", jaxloss.adaptive_log_softmax),
        ("core", jaxloss.ctc_alignment),
        ("core", jaxloss.ctc_greedy_decode),
        ("core", jaxloss.reduce),
    ]
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("extra", ["sum", 1.0, None], ids=str)
def test_a_wrong_call_is_refused_in_the_words_of_python(function, extra):
    name, x = function.__name__, jnp.ones((2, 3))
    parameters = inspect.signature(function).parameters.values()
    places = sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    needed = [x] * sum(p.default is p.empty for p in parameters)
    with pytest.raises(TypeError, match=rf"^{name}\(\) takes .* but {places + 1} were given$"):
        function(*[x] * places, extra)
    with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected .* 'reducton'"):
        function(*needed, reducton=extra)
    first = next(iter(parameters)).name
    with pytest.raises(TypeError, match=rf"^{name}\(\) got multiple values .* '{first}'$"):
        function(*needed, **{first: extra})
    with pytest.raises(TypeError, match=rf"^{name}\(\) missing .* required positional argument"):
        function()


UNREDUCED_FUNCTIONS = {
    name: function
    for name, function in FUNCTIONS.items()
    if "reduction" not in inspect.signature(function).parameters
    # Which are plain functions of Python, as they call a function of the user's.
    and function not in (jaxloss.triplet_margin_with_distance_loss, jaxloss.ranking_softmax_loss)
}


@pytest.mark.parametrize("function", UNREDUCED_FUNCTIONS.values(), ids=UNREDUCED_FUNCTIONS)
def test_a_loss_without_reduction_says_how_to_reduce(function):
    with pytest.raises(TypeError, match=r"'reduction'; .* `jaxloss\.reduce` reduces$"):
        function(jnp.ones((2, 3)), jnp.ones((2, 3)), reduction="mean")


def test_a_function_without_ignore_index_says_what_leaves_out():
    x, labels = jnp.ones((2, 3)), jnp.array([0, 1])
    with pytest.raises(TypeError, match=r"'ignore_index'; `where=` says what takes part$"):
        jaxloss.softmax_cross_entropy_with_integer_labels(x, labels, ignore_index=-100)
    with pytest.raises(TypeError, match=r"'ignore_index'(\. Did you mean .*)?$"):
        F.mse_loss(x, x, ignore_index=-100)  # It has no `where`.


INCOMPLETE = {
    "text for an array": lambda: F.l1_loss("text"),
    "an array for a string": lambda: F.l1_loss(jnp.ones(3), reduction=jnp.ones(3)),
    "only what may be left out": lambda: F.l1_loss(weight=None),
}


@pytest.mark.parametrize("call", INCOMPLETE.values(), ids=INCOMPLETE)
def test_what_is_missing_is_said_before_what_is_wrong(call):
    for run in (call, lambda: jax.eval_shape(call)):
        with pytest.raises(TypeError, match=r"^l1_loss\(\) missing .* required positional arg"):
            run()


@pytest.mark.parametrize("legacy", [(None, None, "mean"), (True, None, None), ("mean",)], ids=str)
def test_torchs_places_of_legacy_arguments_are_refused_in_the_words_of_python(legacy):
    words = rf"takes from 2 to 3 positional arguments but {3 + len(legacy)} were given"
    for run in (lambda call: call(), jax.eval_shape):
        with pytest.raises(TypeError, match=rf"^binary_cross_entropy\(\) {words}"):
            run(lambda: F.binary_cross_entropy(X, X, X, *legacy))


def test_only_own_errors_are_left_alone():
    with pytest.raises(ValueError, match=r"must be positive") as caught:
        jaxloss.huber_loss(jnp.ones(3), jnp.ones(3), delta=-1.0)
    assert checks.is_own(caught.value)
    assert not checks.is_own(ValueError("huber_loss: `delta` must be positive, got -1.0"))


def unknown_type(x: ArrayLike, y: list[jax.Array]): ...


def no_type(x: ArrayLike, y): ...


def unknown_name(x: ArrayLike): ...


def a_number(x: ArrayLike, delta: float = 1.0): ...


def an_array(x: ArrayLike, axis: ArrayLike = 0): ...


WRONG_DECLARATIONS = [
    (unknown_type, {}, r"unknown_type: `y` .* traced arguments.*, got list\[jax.*Array\]"),
    (no_type, {}, "no_type: `y` .* traced arguments"),
    (no_type, {"static": ("y",)}, "no_type: `y` .* static arguments"),
    (a_number, {}, "a_number: `delta` .* traced arguments.*, got float"),
    (an_array, {"static": ("axis",)}, "an_array: `axis` .* static arguments"),
    (unknown_name, {"labels": ("y",)}, "unknown_name: there is no argument y"),
    (unknown_name, {"domain": {"y": checks.POSITIVE}}, "unknown_name: there is no argument y"),
    (unknown_name, {"absent_at_default": ("y",)}, "unknown_name: there is no argument y"),
    (unknown_name, {"static": ("y",)}, "unknown_name: there is no argument y"),
]


@pytest.mark.parametrize(("function", "declared", "words"), WRONG_DECLARATIONS)
def test_a_wrong_declaration_is_an_error_at_once(function, declared, words):
    with pytest.raises(TypeError, match=words):
        public(**declared)(function)


def test_a_term_may_be_absent_in_any_place():
    seen = []

    @public(absent_at_default=("a",), static=("p",))
    def loss(x: ArrayLike, a: ArrayLike = 0.0, p: int = 2, b: ArrayLike = 1.0) -> jax.Array:
        seen.append((a, p))
        return jnp.asarray(x) * a + jnp.asarray(b) * p

    x = jnp.ones(2)
    np.testing.assert_array_equal(loss(x, 0, 3, 2.0), 6 * x)
    np.testing.assert_array_equal(loss(x, np.float32(0)), 2 * x)
    np.testing.assert_array_equal(loss(x, 2.0, 3, 2.0), 8 * x)
    assert seen[:2] == [(0.0, 3), (0.0, 2)]
    assert isinstance(seen[2][0], jax.core.Tracer)


def test_a_public_function_is_one_jit(monkeypatch):
    """Also where checkify is around a call: there is no second program to keep."""
    made, jit = [], jax.jit
    monkeypatch.setattr(jax, "jit", lambda *a, **k: made.append(jit(*a, **k)) or made[-1])

    @public(labels=("y",), static=("p",))
    @chex.assert_max_traces(n=1)
    def loss(x: ArrayLike, y: ArrayLike, p: int = 2) -> jax.Array:
        return jnp.asarray(x)[jnp.asarray(y)] ** p

    monkeypatch.undo()
    assert len(made) == 1
    for _ in range(2):
        wanted = loss(X, 0)
        np.testing.assert_array_equal(jit(lambda x: loss(x, 0))(X), wanted)
        np.testing.assert_array_equal(jax.vmap(lambda x: loss(x, 0))(X[None])[0], wanted)
        np.testing.assert_array_equal(checkify.checkify(lambda x: loss(x, 0))(X)[1], wanted)
    with pytest.raises(AssertionError, match="traced"):  # The count can fail.
        loss(X, 0, p=3)


FIRST_IMPORTS = {
    "jit": "jax.jit(lambda x: first().huber_loss(x, 0 * x))(x)",
    "grad": "jax.grad(lambda x: first().huber_loss(x, 0 * x).sum())(x)",
    "vmap": "jax.vmap(lambda x: first().huber_loss(x, 0 * x))(x)",
    "checkify": 'assert "huber_loss: `delta`" in checkify.checkify('
    "lambda d: first().huber_loss(x, x, delta=d))(jnp.float32(-1))[0].get()",
}
THEN = """
from jaxloss import functional as F

try:
    F.huber_loss(x, x, delta=jnp.float32(-1))
except ValueError as error:
    assert "huber_loss: `delta` must be positive" in str(error)
else:
    raise AssertionError("What is outside of every trace was not read.")
error, _ = checkify.checkify(lambda y: F.cross_entropy(x, y))(jnp.array([0, 3]))
assert "`target` must be a class" in error.get()
"""


@pytest.mark.parametrize("first", FIRST_IMPORTS.values(), ids=FIRST_IMPORTS)
def test_the_package_may_be_imported_inside_of_a_trace(first):
    code = f"""
import jax
import jax.numpy as jnp
from jax.experimental import checkify

x, first = jnp.ones((2, 3)), lambda: __import__("jaxloss")
{first}
{THEN}"""
    root = pathlib.Path(str(jaxloss.__file__)).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr


MASKED = np.ma.masked_array(np.ones((2, 3), np.float32), np.eye(2, 3))
MASKED_CALLS = {
    "input": lambda: F.mse_loss(MASKED, X),
    "target": lambda: F.mse_loss(X, [MASKED[0], MASKED[1]]),
    "weight": lambda: F.mse_loss(X, X, weight=MASKED),
    "predictions": lambda: jaxloss.squared_error(MASKED, X),
    "where": lambda: jaxloss.squared_error(X, X, where=MASKED > 0),
    "delta": lambda: jaxloss.huber_loss(X, X, delta=np.ma.masked),
    "labels": lambda: jaxloss.negative_log_likelihood(X, np.ma.masked_all(2, np.int64)),
    "losses": lambda: jaxloss.reduce(MASKED),
}


@pytest.mark.parametrize(("argument", "call"), MASKED_CALLS.items(), ids=MASKED_CALLS)
def test_a_masked_array_is_not_taken(argument, call):
    words = (
        rf"`{argument}` must be an? \w+ without a mask, got numpy\.ma\.\S+: pass its `data`, "
        r"and `where=~mask` to a function that takes it"
    )
    for run in (call, lambda: jax.eval_shape(call)):
        with pytest.raises(TypeError, match=words):
            run()


def test_a_masked_number_shapes_no_computation():
    with pytest.raises(TypeError, match=r"pairwise_distance: `p` must be hashable, .* got masked"):
        F.pairwise_distance(X, X, p=np.ma.masked_array(2.0))
