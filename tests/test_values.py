"""Values against the formulas in float64, in both precisions and through both doors."""

import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import DOOR_IDS, DOORS, LOSSES, arrays

ULP = 2.0**-23


def expected(loss, args, **more):
    options = {
        name: np.asarray(v) if hasattr(v, "shape") else v
        for name, v in arrays(loss.options).items()
    }
    return getattr(oracle, loss.core)(*map(np.asarray, args), **options, **more)


@pytest.mark.parametrize(("loss", "door"), DOORS, ids=DOOR_IDS)
def test_float64(loss, door, x64):
    args = loss.inputs(np.float64, seed=1)
    value = loss.doors()[door](*args)
    assert value.dtype == jnp.float64
    np.testing.assert_allclose(value, expected(loss, args), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("loss", "door"), DOORS, ids=DOOR_IDS)
def test_float32(loss, door):
    args = loss.inputs(np.float32, seed=2)
    value = loss.doors()[door](*args)
    assert value.dtype == jnp.float32
    exact = expected(loss, [np.asarray(a, np.float64) if a.dtype.kind == "f" else a for a in args])
    np.testing.assert_allclose(value, exact, rtol=4 * ULP, atol=4 * ULP * np.abs(exact).max())


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_shape_is_one_loss_per_example(loss):
    args = loss.inputs()
    assert loss.losses(*args).shape == expected(loss, args).shape
