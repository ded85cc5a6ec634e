"""What each loss reads and writes, over the least it could, is what it was: no trick is lost.

`python tests/test_bytes.py` records it anew for the jaxlib that runs it.
"""

import dataclasses
import json
import pathlib
from importlib import metadata

import jax
import numpy as np
import pytest
from cases import BY_NAME, LOSSES, C, N
from hlo import compiled, cost

RECORD = pathlib.Path(__file__).with_suffix(".json")
VERSION = ".".join(metadata.version("jaxlib").split(".")[:2])
LARGER = {N: 256, C: 128}


def bytes_over_floor(loss, around=lambda losses: losses):
    """Of value and gradient, as a user compiles them; every array read or written once is 1."""

    def larger(x):
        return jax.ShapeDtypeStruct([LARGER.get(size, size) for size in x.shape], x.dtype)

    options = {
        name: np.resize(value, LARGER[C]) if np.shape(value) == (C,) else value
        for name, value in loss.options.items()
    }
    args, own = [larger(x) for x in loss.inputs()], dataclasses.replace(loss, options=options)
    f = jax.value_and_grad(lambda *args: around(own.losses(*args)).sum(), loss.floats)
    arrays = (*args, *jax.tree.leaves(jax.eval_shape(f, *args)))
    least = sum(x.size * x.dtype.itemsize for x in arrays)
    return cost(compiled(f, *args), "bytes accessed") / least


def recorded():
    records = json.loads(RECORD.read_text())
    if VERSION not in records:  # Another XLA fuses otherwise; CI's two are recorded.
        pytest.skip(f"jaxlib {VERSION} has no record")
    return records[VERSION]


def test_every_loss_is_recorded():
    for figures in json.loads(RECORD.read_text()).values():
        assert {*figures} == {loss.name for loss in LOSSES}
    assert recorded()


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_bytes_over_floor(loss):
    assert bytes_over_floor(loss) == pytest.approx(recorded()[loss.name], rel=0.05)


def test_a_lost_trick_is_noticed():
    """Two more arrays that are stored, which barriers force, between the losses and their sum."""
    loss, barrier = BY_NAME["squared_error"], jax.lax.optimization_barrier
    found = bytes_over_floor(loss, lambda losses: barrier(2 * barrier(losses)))
    assert found > 1.05 * recorded()[loss.name]


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    records = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    records[VERSION] = {loss.name: round(bytes_over_floor(loss), 3) for loss in LOSSES}
    RECORD.write_text(json.dumps(dict(sorted(records.items())), indent=1) + "\n")
