"""Arrays that Linen modules hold: compared and hashed by their numbers, copied and lifted."""

import copy
import pickle
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_buffers import FIELDS, OPTIONS, VALUES, each_field, expected_losses, inputs, loss_of, made

import jaxloss.linen

# A mark of `test_buffers` too.
pytestmark = pytest.mark.filterwarnings("ignore:NLLLoss2d is deprecated:FutureWarning")


@each_field
def test_linen_modules_with_arrays(name, field):
    value = VALUES[field]
    module, twin = (made(jaxloss.linen, name, **{field: jnp.asarray(value)}) for _ in range(2))
    other = made(jaxloss.linen, name, **{field: jnp.asarray(value) * 2})
    assert module == twin
    assert hash(module) == hash(twin)
    assert module != other
    wanted = loss_of(module, name)
    for copied in (module.clone(), copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert copied == module
        np.testing.assert_array_equal(loss_of(copied, name), wanted)


class Lifted(nn.Module):
    """Makes every loss where it is traced, and lifts it."""

    lift: Any

    @nn.compact
    def __call__(self):
        found = []
        for name, field in FIELDS:
            sizes = (5, 5) if name == "LinearCrossEntropyLoss" else ()
            options = OPTIONS.get(name, {}) | {field: jnp.asarray(VALUES[field])}
            lifted = self.lift(getattr(jaxloss.linen, name))(*sizes, **options)
            found.append(lifted(*inputs(name)))
        return jnp.stack(found)


@pytest.mark.parametrize("lift", [lambda cls: cls, nn.jit, nn.remat], ids=["plain", "jit", "remat"])
def test_linen_modules_with_arrays_are_lifted(lift):
    module = Lifted(lift)
    variables = jax.jit(module.init)(jax.random.key(0))
    found: Any = [f(variables) for f in (module.apply, jax.jit(module.apply))]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)
    # The parameters of linear layers depend on the name of the module.
    own = np.array([name != "LinearCrossEntropyLoss" for name, _ in FIELDS])
    np.testing.assert_allclose(found[0][own], expected_losses()[own], rtol=1e-6)
