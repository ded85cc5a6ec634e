"""Integers by value: class indices and ignored ones that are too wide for JAX, in every dtype."""

# pyright: reportArgumentType=false, reportCallIssue=false
# What type checkers do not take is the subject.

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DOORS, C, N, arrays, prepared
from jax.experimental import checkify

import jaxloss
import jaxloss.linen
import jaxloss.nnx
from jaxloss import functional as F


def _adaptive(inputs, labels):
    ones = functools.partial(np.ones, dtype=np.float32)
    head, tail = ones((3, 3)), [(ones((2, 3)), ones((C - 2, 2)))]
    return jaxloss.adaptive_softmax_cross_entropy(inputs, head, tail, labels)


@functools.cache
def labelled():
    """Every function of class indices as a function of these, and such indices."""
    rows = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
    found = {"adaptive": (functools.partial(_adaptive, rows), np.arange(N) % C)}
    module = jaxloss.linen.AdaptiveLogSoftmaxWithLoss(3, C, [2], div_value=1.0)
    parameters = module.init(jax.random.key(0), rows, jnp.zeros(N, jnp.int32))
    found["adaptive module"] = (
        lambda y: module.apply(parameters, rows, y)[0],
        np.arange(N) % C,
    )
    for loss, door in DOORS:
        place = {"linear": 2, "linear_smoothed": 2, "multilabel_margin": 1}.get(loss.name)
        if loss.name in ("ctc", "rnnt"):
            place = 2 if door == "core" else 1
        elif loss.labels:
            place = 1
        if place is not None:
            function, args, options = prepared(loss, door)

            def call(labels, function=function, args=args, options=options, place=place):
                return function(*args[:place], labels, *args[place + 1 :], **arrays(options))

            found[f"{loss}-{door}"] = call, np.asarray(args[place])
    return found


FUNCTIONS_OF_LABELS = list(labelled())
# What is 0 or another class in 32 bits, and the edges.
WIDE = [2**32, 2**32 + 1, 2**33 - 1, 2**31, 2**32 - 1, 2**63 - 1, -(2**32), -(2**63) + 1]


@functools.cache
def of_good_labels(name):
    call, labels = labelled()[name]
    with jax.enable_x64(False):
        return np.asarray(call(labels))


def check_wide_labels(name, *kinds):
    call, labels = labelled()[name]
    fine, others = of_good_labels(name), np.arange(N) != 2
    for bad, given in itertools.product(WIDE, kinds):
        wrong = labels.astype(np.int64)
        wrong[(2,) + (0,) * (labels.ndim - 1)] = bad
        value = np.asarray(call(given(wrong)))
        np.testing.assert_array_equal(value[others], fine[others])
        if bad < 0 and name.startswith("multilabel"):  # The end of the labels.
            assert value[2] == 0
        else:
            assert np.isnan(value[2])


@pytest.mark.parametrize("name", FUNCTIONS_OF_LABELS)
def test_a_label_too_wide_for_jax_is_a_bad_label(name):
    check_wide_labels(name, np.asarray, np.ndarray.tolist)


@pytest.mark.parametrize("name", FUNCTIONS_OF_LABELS)
def test_a_wide_label_is_a_bad_label_with_x64(name, x64):
    check_wide_labels(name, jnp.asarray, np.ndarray.tolist)


@pytest.mark.parametrize("name", FUNCTIONS_OF_LABELS)
def test_a_wide_label_is_an_error_under_checkify(name):
    call, labels = labelled()[name]
    wrong = labels.astype(np.int64)
    wrong[(2,) + (0,) * (labels.ndim - 1)] = 2**32
    error, _ = checkify.checkify(lambda: call(wrong))()
    with pytest.raises(checkify.JaxRuntimeError, match="must be"):
        error.throw()


# The integers of a call, the labels in the dtype named, or on the host as numpy's or Python's.
MINUS_100 = 2**32 - 100
HUGE = 2**64 - 100
IGNORED = [
    ([0, 1, 2], "int32", 2**32),
    ([0, 1, 2], "int32", np.int64(2**32)),
    ([0, 1, -100], "int32", MINUS_100),
    ([0, 1, MINUS_100], "uint32", -100),
    ([0, 1, MINUS_100], "uint32", MINUS_100),
    ([0, 1, 156], "uint8", -100),
    ([0, 1, 255], "uint8", 255),
    ([0, 1, 255], "uint8", -1),
    ([0, 1, -1], "int8", 255),
    ([0, 1, -1], "int8", np.uint8(255)),
    ([0, 1, -1], "int32", jnp.uint32(2**32 - 1)),
    ([0, 1, 2**32], "numpy", 2**32),
    ([0, -100, 2**32], "numpy", -100),
    ([0, 1, 2**32], "numpy", 2**32 + 1),
    ([0, -100, 2**32], "numpy", 0),
    ([0, MINUS_100, -100], "numpy", MINUS_100),
    ([0, MINUS_100, -100], "numpy", -100),
    ([0, 2**63 - 1, -(2**63)], "numpy", -(2**63)),
    ([0, 2**32, 2**33], "list", 2**33),
    ([2**32, 2**31 - 1, 1], "list", 2**31 - 1),
    ([0, 1, 2**64 - 1], "list", 2**64 - 1),
    ([0, -1, 2**64 - 1], "list", -1),
    ([0, 1, 2], "int32", 2**80),
]
DOORS_THAT_IGNORE = {
    "cross_entropy": F.cross_entropy,
    "nll_loss": F.nll_loss,
    "linear_cross_entropy": lambda x, y, **options: F.linear_cross_entropy(
        x, np.eye(3, dtype=x.dtype), y, **options
    ),
    "module": lambda x, y, ignore_index, reduction: jaxloss.nnx.CrossEntropyLoss(
        ignore_index=ignore_index, reduction=reduction
    )(x, y),
}


def check_ignored(function, labels, kind, ignore_index):
    x = jnp.asarray(np.arange(9.0).reshape(3, 3) / 7)
    if kind == "numpy":
        given = np.array(labels)
    elif kind == "list":
        given = labels
    else:
        given = jnp.array(labels, kind)
    got = np.asarray(function(x, given, ignore_index=ignore_index, reduction="none"))
    known = np.int32([y if 0 <= y < 3 else 0 for y in labels])
    plain = np.asarray(function(x, known, ignore_index=-100, reduction="none"))
    for y, value, whole in zip(labels, got, plain, strict=True):
        wanted = 0 if y == int(ignore_index) else whole if 0 <= y < 3 else np.nan
        np.testing.assert_array_equal(value, wanted)


@pytest.mark.parametrize("function", DOORS_THAT_IGNORE.values(), ids=DOORS_THAT_IGNORE)
def test_ignore_index_is_compared_by_value(function):
    for labels, kind, ignore_index in IGNORED:
        check_ignored(function, labels, kind, ignore_index)


@pytest.mark.parametrize("function", DOORS_THAT_IGNORE.values(), ids=DOORS_THAT_IGNORE)
def test_ignore_index_is_compared_by_value_with_x64(function, x64):
    for labels, kind, ignore_index in [
        *IGNORED,
        ([0, 1, HUGE], "uint64", -100),
        ([0, 1, HUGE], "uint64", HUGE),
        ([0, 1, -100], "int64", HUGE),
        ([0, 1, 2**32], "int64", 2**32),
        ([0, 2**32, 1], "int64", 0),
    ]:
        check_ignored(function, labels, kind, ignore_index)


def test_ignore_index_may_be_traced():
    x, y = jnp.zeros((3, 3)), jnp.array([0, 1, 2**32 - 1], jnp.uint32)
    losses = jax.jit(lambda i: F.cross_entropy(x, y, ignore_index=i, reduction="none"))
    np.testing.assert_array_equal(losses(1) == 0, [False, True, False])
    np.testing.assert_array_equal(losses(-1) == 0, [False, False, False])
    np.testing.assert_array_equal(losses(jnp.uint32(2**32 - 1)) == 0, [False, False, True])


@pytest.mark.parametrize("door", ["functional", "nnx", "linen"])
def test_class_probabilities_take_no_ignore_index(door):
    x, y = jnp.zeros((2, 3)), jnp.full((2, 3), 1 / 3)

    def loss(ignore_index):
        if door == "functional":
            return F.cross_entropy(x, y, ignore_index=ignore_index)
        return getattr(jaxloss, door).CrossEntropyLoss(ignore_index=ignore_index)(x, y)

    wanted = F.cross_entropy(x, y)
    for default in (-100, np.int64(-100), jnp.int32(-100), np.array(-100)):
        np.testing.assert_array_equal(loss(default), wanted)
        np.testing.assert_array_equal(jax.jit(lambda: loss(-100))(), wanted)
    for other in (0, -1, 255, np.int64(1), jnp.int32(0), 2**32):
        with pytest.raises(ValueError, match="cross_entropy: `ignore_index` must be left at -100"):
            loss(other)
