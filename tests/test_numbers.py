"""A hyper-parameter is its number, whatever library that is of, and 0 leaves a term out."""

# pyright: reportArgumentType=false, reportCallIssue=false
# What type checkers do not take is the subject.

import decimal
import fractions
import inspect

import jax.numpy as jnp
import numpy as np
import pytest
from cases import DOORS, LOSSES, arrays, prepared
from test_modules import MODULES

import jaxloss
import jaxloss.linen
import jaxloss.nnx
from jaxloss import functional as F
from jaxloss._base import checks
from jaxloss.modules import base


def numbers():
    """Every hyper-parameter of every function, with a call of the function that takes it."""
    found = {}
    for loss, door in DOORS:
        function, args, options = prepared(loss, door)
        if "distance_function" in options:
            continue  # Its numbers are those of the loss with the default distance.
        for name, parameter in inspect.signature(function).parameters.items():
            of_numbers = parameter.annotation in ("ArrayLike", "float", "int")
            if not of_numbers or not isinstance(parameter.default, int | float):
                continue
            if name in ("ignore_index", "blank", "blank_id", "dim", "axis"):
                continue  # Integers of their own meaning.

            def call(value, function=function, args=args, options=options, name=name):
                return function(*args, **{**arrays(options), name: value})

            key = f"{door}.{function.__name__}-{name}"
            found.setdefault(key, call)
    distances = prepared(next(a for a in LOSSES if a.name == "triplet"), "core")[1]
    for door, function in (
        ("core", jaxloss.triplet_margin_with_distance_loss),
        ("functional", F.triplet_margin_with_distance_loss),
    ):
        found[f"{door}.{function.__name__}-margin"] = lambda value, function=function: function(
            *distances, margin=value
        )
    classes = {m[0]: m for m in MODULES}
    rows = {loss.name: loss for loss in LOSSES}
    for name, (_, options, row, _) in classes.items():
        inputs = rows[row].as_torch(*rows[row].inputs(seed=1))
        for option in options:
            if option == "p" or option in base.NUMBERS - {"ignore_index"}:
                for door in (jaxloss.nnx, jaxloss.linen):
                    # Unreduced, as in the rows: then a class runs the programs of its function.
                    def build(value, door=door, name=name, inputs=inputs, option=option):
                        return getattr(door, name)(**{option: value}, reduction="none")(*inputs)

                    found[f"{door.__name__}.{name}-{option}"] = build
    return found


NUMBERS = numbers()
FLOATS = [0.5, 0.0, 1.0, 1.5, -1.0, float("nan")]
INTEGERS = [0, 1, 2, -1]
OF_FLOATS = [np.float32, np.float64, np.array]
OF_INTEGERS = [np.int64, np.int32, np.array]
OF_BOTH = [fractions.Fraction, decimal.Decimal]


def outcome(call, value):
    try:
        return np.asarray(call(value))
    except (TypeError, ValueError) as error:
        return type(error), str(error).replace(".0", "")  # 1 and 1.0 are one number.


def same(got, wanted):
    np.testing.assert_equal(type(got), type(wanted))
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_that_number_whatever_library_it_is_of(name):
    call, is_power = NUMBERS[name], name.endswith("-p")
    for values, kinds in ((FLOATS, OF_FLOATS), (INTEGERS, OF_INTEGERS)):
        for value in values:
            wanted = outcome(call, value)
            for kind in kinds:
                same(outcome(call, kind(value)), wanted)
            if value == value:
                for kind in OF_BOTH:
                    same(outcome(call, kind(value)), wanted)
            if not is_power:  # One of JAX is no Python value, see `test_errors`.
                same(outcome(call, jnp.asarray(value)), wanted)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_complex_number_is_a_type_error(name):
    for value in (1j, 1 + 0j, np.complex64(1), np.complex128(1), np.array(1 + 0j)):
        with pytest.raises(TypeError, match=r": `\w+` must be real, got"):
            NUMBERS[name](value)


@pytest.fixture
def untraced(monkeypatch):
    """From its call on, only what is compiled already can run."""
    return lambda: monkeypatch.setattr(checks, "arrays", None)  # Which every trace calls.


ZEROS = [0, 0.0, np.float32(0), np.int64(0), np.array(0), jnp.float32(0), decimal.Decimal(0)]


@pytest.mark.parametrize("option", ["label_smoothing", "z_loss"])
def test_a_term_is_absent_at_every_zero(option, untraced):
    logits, labels = jnp.array([[-jnp.inf, 0.0, 1.0]]), jnp.array([1])
    kernel, each = jnp.array([[-jnp.inf], [0.0], [1.0]]), jnp.array([[0.0, 1.0, 0.0]])
    calls = [
        lambda **o: jaxloss.softmax_cross_entropy_with_integer_labels(logits, labels, **o),
        lambda **o: jaxloss.softmax_cross_entropy(logits, each, **o),
        lambda **o: jaxloss.linear_softmax_cross_entropy(jnp.ones((1, 1)), kernel, labels, **o),
    ]
    if option == "label_smoothing":
        calls.append(lambda **o: F.cross_entropy(logits, labels, **o))
        calls.append(lambda **o: F.linear_cross_entropy(jnp.ones((1, 1)), kernel, labels, **o))
    without = [call() for call in calls]
    untraced()
    for call, wanted in zip(calls, without, strict=True):
        for zero in ZEROS:
            np.testing.assert_array_equal(call(**{option: zero}), wanted)


def test_static_numbers_of_numpy_are_no_other_program(untraced):
    x = jnp.ones((2, 3))
    wanted = [F.pairwise_distance(x, 2 * x, p=p, keepdim=True) for p in (7, 7.0)]
    untraced()
    for p in (np.int64(7), np.array(7), np.float32(7), np.array(7.0), fractions.Fraction(7)):
        got = F.pairwise_distance(x, 2 * x, p=p, keepdim=np.bool_(True))
        np.testing.assert_array_equal(got, wanted[0])
