"""Data parallelism over real processes: the mean of all examples, not a mean of means."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss
from jaxloss import functional as F

PROCESSES, DEVICES = 2, 2
N, D, C = 16, 3, 5
IGNORED = -100


def data():
    """Examples of which the devices have few or many that count, and the parameters."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, C, N).astype(np.int32)
    labels[:5] = labels[8] = IGNORED
    weights = rng.uniform(0.1, 2, N).astype(np.float32)
    inputs, kernel = (rng.normal(size=s).astype(np.float32) for s in ((N, D), (D, C)))
    return inputs, labels, weights, kernel


def losses(kernel, inputs, labels):
    known = labels != IGNORED
    found = jaxloss.softmax_cross_entropy_with_integer_labels(
        inputs @ kernel, labels, where=known[:, None]
    )
    return found, known


def reduced(kernel, inputs, labels, weights, axis_name=None):
    found, known = losses(kernel, inputs, labels)
    return jaxloss.reduce(found, weights=weights, where=known, axis_name=axis_name)


def by_torch(kernel, inputs, labels, weights):
    return F.cross_entropy(inputs @ kernel, labels, weights[:C])


def whole():
    """Losses and gradients on one device."""
    inputs, labels, weights, kernel = map(jnp.asarray, data())
    fs = {"named axis": reduced, "global arrays": by_torch}
    return {k: jax.value_and_grad(f)(kernel, inputs, labels, weights) for k, f in fs.items()}


def work(process: int, address: str) -> None:
    """One of the processes: the same from its half of the examples."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, PROCESSES, process)
    mesh = jax.make_mesh((PROCESSES * DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    *examples, kernel = data()
    mine = slice(process * N // PROCESSES, (process + 1) * N // PROCESSES)
    sharding = NamedSharding(mesh, P("data"))
    args = [jax.make_array_from_process_local_data(sharding, x[mine]) for x in examples]
    weights = jax.device_put(examples[2], NamedSharding(mesh, P()))

    @jax.shard_map(mesh=mesh, in_specs=(P(), P("data"), P("data"), P("data")), out_specs=P())
    def spread(*args):
        return reduced(*args, axis_name="data")

    found = {
        "named axis": jax.jit(jax.value_and_grad(spread))(kernel, *args),
        "global arrays": jax.jit(jax.value_and_grad(by_torch))(kernel, *args[:2], weights),
    }
    print(json.dumps(jax.tree.map(lambda x: np.asarray(x).tolist(), found)), flush=True)


def test_two_processes_are_one():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(pathlib.Path(jaxloss.__file__).parent.parent),
    }
    running = [
        subprocess.Popen(
            [sys.executable, __file__, str(process), address],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(PROCESSES)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (printed, errors) in zip(running, outputs, strict=True):
        assert process.returncode == 0, errors
        found = json.loads(printed.splitlines()[-1])
        for name, wanted in whole().items():
            for mine, reference in zip(found[name], wanted, strict=True):
                np.testing.assert_allclose(mine, reference, rtol=1e-5, atol=1e-7)


def test_a_mean_of_means_would_be_another():
    inputs, labels, weights, kernel = map(jnp.asarray, data())
    parts = (x.reshape(PROCESSES * DEVICES, -1, *x.shape[1:]) for x in (inputs, labels, weights))
    means = jax.vmap(lambda *part: reduced(kernel, *part))(*parts)
    assert abs(means.mean() - whole()["named axis"][0]) > 0.01


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
