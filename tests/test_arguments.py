"""Arguments that are no arrays are named, and torch's legacy ones mean what they do in torch."""

# pyright: reportArgumentType=false, reportCallIssue=false
# Wrong calls are the subject here.

import inspect

import jax.numpy as jnp
import numpy as np
import pytest
from cases import LOSSES

import jaxloss
from jaxloss import functional as F

X, Y = jnp.ones((2, 3)), jnp.array([0, 1])


class Tensor:
    """Another library's array."""

    def __array__(self, dtype=None, copy=None):
        return np.ones((2, 3))


FUNCTIONS = {(jaxloss, loss.core): loss.inputs() for loss in LOSSES} | {
    (F, loss.torch): loss.as_torch(*loss.inputs()) for loss in LOSSES if loss.torch
}


KEYWORD_NEEDED = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty)


@pytest.mark.parametrize(
    ("door", "name"), FUNCTIONS, ids=lambda part: getattr(part, "__name__", part)
)
def test_what_is_no_array_is_named(door, name):
    function, args = getattr(door, name), FUNCTIONS[door, name]
    parameters = inspect.signature(function).parameters
    needed = {n: 0.5 for n, p in parameters.items() if (p.kind, p.default) == KEYWORD_NEEDED}
    for (argument, parameter), position in zip(parameters.items(), range(len(args)), strict=False):
        faults = ["text", Tensor()] + ([None] if parameter.default is parameter.empty else [])
        for fault in faults:
            wrong = (*args[:position], fault, *args[position + 1 :])
            with pytest.raises(TypeError) as caught:
                function(*wrong, **needed)
            beginning, _, got = str(caught.value).partition(", got ")
            assert beginning.startswith(f"{name}: `{argument}` must be an array")
            assert got == {str: "str", Tensor: f"{__name__}.Tensor"}.get(type(fault), "NoneType")


@pytest.mark.parametrize(
    "call",
    [
        lambda: F.l1_loss(X, X, "sum"),
        lambda: F.cross_entropy(X, Y, None, None),
        lambda: F.hinge_embedding_loss(X, X, 1.0, None, None, "sum"),
        lambda: F.gaussian_nll_loss(X, X, X, size_average=True),
        lambda: F.huber_loss(X, X, reduce=True),
        lambda: F.l1_loss(X, X, redaction="sum"),
        lambda: jaxloss.huber_loss(X, X, 1.0),
    ],
)
def test_calls_that_mean_something_else_in_torch_are_type_errors(call):
    with pytest.raises(TypeError, match="argument"):
        call()


def test_legacy_arguments_warn_and_map_as_in_torch():
    wanted = {
        (True, True): "mean",
        (True, False): "none",
        (False, True): "sum",
        (False, False): "none",
        (None, True): "mean",
        (None, False): "none",
        (True, None): "mean",
        (False, None): "sum",
    }
    for (size_average, reduce), reduction in wanted.items():
        with pytest.warns(DeprecationWarning, match=f"reduction='{reduction}'") as caught:
            got = F.l1_loss(X, 3 * X, size_average=size_average, reduce=reduce, reduction="none")
        assert caught[0].filename == __file__
        np.testing.assert_array_equal(got, F.l1_loss(X, 3 * X, reduction=reduction))
