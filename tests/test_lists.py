"""Nested lists are the arrays that they make, and empty ones no labels."""

# pyright: reportArgumentType=false, reportCallIssue=false
# What type checkers do not take is the subject.

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DOORS, N, arrays, prepared

import jaxloss
from jaxloss import functional as F


def as_lists(value):
    return np.asarray(value).tolist() if isinstance(value, jax.Array | np.ndarray) else value


def as_tuples(value):
    listed = as_lists(value)
    return tuple(map(as_tuples, listed)) if isinstance(listed, list) else listed


# A distance of one's own is given what the caller gave, whatever that is.
LISTED = [(loss, door) for loss, door in DOORS if "distance_function" not in loss.options]


@pytest.mark.parametrize(("loss", "door"), LISTED, ids=[f"{loss}-{door}" for loss, door in LISTED])
def test_nested_lists_are_arrays(loss, door):
    function, args, options = prepared(loss, door)

    def check(**more):
        wanted = function(*args, **arrays(options), **more)
        for listed in (as_lists, as_tuples):
            given = {name: listed(x) for name, x in (options | more).items()}
            np.testing.assert_array_equal(function(*map(listed, args), **given), wanted)

    check()
    if door == "core":
        check(where=np.asarray(loss.where(np.arange(N) % 2 == 0)))


def test_lists_of_traced_numbers_are_arrays():
    def loss(x):
        return F.cross_entropy([[x, 0.5], [0.1, 2 * x]], [0, 1])

    x = jnp.float32(0.25)
    wanted = F.cross_entropy(jnp.array([[0.25, 0.5], [0.1, 0.5]]), jnp.array([0, 1]))
    for value in (loss(x), jax.jit(loss)(x), jax.value_and_grad(loss)(x)[0]):
        np.testing.assert_allclose(value, wanted, rtol=1e-6)


EMPTY = {
    "cross_entropy": lambda: F.cross_entropy(jnp.zeros((0, 3)), [], reduction="none"),
    "nll_loss": lambda: F.nll_loss(jnp.zeros((0, 3)), [], reduction="none"),
    "multi_margin_loss": lambda: F.multi_margin_loss(jnp.zeros((0, 3)), [], reduction="none"),
    "linear_cross_entropy": lambda: F.linear_cross_entropy(
        jnp.zeros((0, 2)), jnp.ones((3, 2)), [], reduction="none"
    ),
    "core": lambda: jaxloss.softmax_cross_entropy_with_integer_labels(jnp.zeros((0, 3)), []),
    "linear": lambda: jaxloss.linear_softmax_cross_entropy(jnp.zeros((0, 2)), jnp.ones((3, 2)), []),
}


@pytest.mark.parametrize("call", EMPTY.values(), ids=EMPTY)
def test_an_empty_list_is_no_labels(call):
    assert call().shape == (0,)


def test_an_empty_list_is_no_targets_of_ctc():
    log_probs = jax.nn.log_softmax(jnp.arange(15.0).reshape(5, 3))
    blank = -jnp.sum(log_probs[:, 0])
    np.testing.assert_allclose(F.ctc_loss(log_probs, [], 5, 0), blank, rtol=1e-6)
    np.testing.assert_allclose(F.ctc_loss(log_probs[:, None], [], [5], [0]), blank, rtol=1e-6)
