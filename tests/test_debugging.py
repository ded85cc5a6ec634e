"""Under JAX's flags for debugging valid input passes, whatever a loss computes on its way."""

import jax
import jax.numpy as jnp
import pytest
from cases import LOSSES, OUTERMOST, OUTERMOST_IDS, UNREDUCED, scalar
from jax.experimental import checkify

import jaxloss


@pytest.fixture
def debugging():
    """Every operation runs by itself, and its result may not be NaN."""
    with jax.debug_nans(True), jax.disable_jit():
        yield


@pytest.mark.parametrize(("loss", "door"), OUTERMOST, ids=OUTERMOST_IDS)
def test_valid_input_passes(loss, door, debugging):
    args = loss.inputs()
    f, floats = scalar(loss, door, args)
    jax.value_and_grad(f, range(len(floats)))(*floats)
    jax.jvp(f, floats, tuple(map(jnp.ones_like, floats)))
    if door == "functional" and loss.torch not in UNREDUCED:
        for reduction in ("mean", "sum"):
            loss.functional(*args, reduction=reduction)
    rows = jnp.arange(len(args[0])) % 2 == 0
    jaxloss.reduce(loss.losses(*args, where=loss.where(rows)))


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_every_check_of_a_gradient_can_be_made(loss):
    """JAX's checkify knows no scatter that a gather along an axis turns into, for one."""
    f, floats = scalar(loss, "core", loss.inputs())
    checked = checkify.checkify(jax.grad(f, range(len(floats))), errors=checkify.all_checks)
    jax.eval_shape(checked, *floats)


def test_a_bad_label_is_found(debugging):
    with pytest.raises(FloatingPointError):
        jaxloss.softmax_cross_entropy_with_integer_labels(jnp.zeros((2, 3)), jnp.array([0, 3]))
