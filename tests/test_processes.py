"""Data parallelism over real processes: the loss and gradients of two are those of one.

The test starts this file twice as a script. Each process holds its half of the batch.
"""

import contextlib
import functools
import importlib
import os
import pathlib
import socket
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss
from jaxloss import functional as F

PROCESSES, DEVICES = 2, 4
RNG = np.random.default_rng(0)
MODEL = (RNG.normal(size=(3, 5)).astype(np.float32), RNG.normal(size=(1, 5)).astype(np.float32))
INPUTS = RNG.normal(size=(16, 3)).astype(np.float32)
# The devices hold 4, 1, 2 and 0 examples that take part.
LABELS = np.array([0, 1, 2, 3, -100, 4, -100, -100, 1, -100, 0, *[-100] * 5], np.int32)
WEIGHTS = RNG.uniform(0.1, 3, size=16).astype(np.float32)
CLASS_WEIGHTS = np.array([0.2, 1, 3, 0.5, 2], np.float32)
BATCH = (INPUTS, LABELS, WEIGHTS)
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(DEVICES // PROCESSES),
    "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "XLA_FLAGS": "",
    "PYTHONPATH": os.pathsep.join(sys.path),
}


def reduced(model, inputs, labels, weights, axis_name=None):
    logits, known = inputs @ model[0] + model[1], labels >= 0
    losses = jaxloss.softmax_cross_entropy_with_integer_labels(logits, labels, where=known[:, None])
    return jaxloss.reduce(losses, where=known, weights=weights, axis_name=axis_name)


def as_torch(model, inputs, labels, weights):
    return F.cross_entropy(inputs @ model[0] + model[1], labels, CLASS_WEIGHTS)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def work(address, process, folder):
    # Else gloo looks up the machine's own name, which without a network may not resolve. JAX has
    # no public way to tell it; where this private one is gone, gloo does as it likes.
    with contextlib.suppress(ImportError, AttributeError):
        jaxlib: Any = importlib.import_module("jaxlib._jax")
        gloo = functools.partial(jaxlib.make_gloo_tcp_collectives, hostname="127.0.0.1")
        jaxlib.make_gloo_tcp_collectives = gloo
    jax.distributed.initialize(
        address,
        PROCESSES,
        process,
        cluster_detection_method="deactivate",
        coordinator_bind_address=address,
        shutdown_timeout_seconds=20,
    )
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    halves = [np.split(array, PROCESSES)[process] for array in BATCH]
    batch = [jax.make_array_from_process_local_data(split, half) for half in halves]
    shard_map = jax.shard_map(mesh=mesh, in_specs=(P(), *[P("data")] * 3), out_specs=P())
    part = functools.partial(reduced, axis_name="data")
    grad = jax.value_and_grad
    ways = (grad(shard_map(part)), shard_map(grad(part)), grad(as_torch))
    found = [flat(jax.jit(f, out_shardings=whole)(MODEL, *batch)) for f in ways]
    np.save(folder / f"{process}.npy", found)


def run(folder):
    """Runs the processes to their end or the first failure; returns exit codes and output."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    inherited = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    logs = [folder / f"{i}.log" for i in range(PROCESSES)]
    processes = []
    with contextlib.ExitStack() as stack:
        for i, log in enumerate(logs):
            process = subprocess.Popen(
                [sys.executable, __file__, address, str(i), folder],
                env=inherited | ENVIRONMENT,
                stdout=stack.enter_context(log.open("w")),
                stderr=subprocess.STDOUT,
            )
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        deadline = time.monotonic() + 120
        codes = [None]
        while None in codes and not any(codes) and time.monotonic() < deadline:
            time.sleep(0.05)
            codes = [process.poll() for process in processes]
    return codes, "\n".join(log.read_text() for log in logs)


def test_over_processes_it_is_the_mean_of_all(tmp_path):
    codes, output = run(tmp_path)
    if "Failed to add port" in output:  # Another program took it in between.
        codes, output = run(tmp_path)
    assert codes == [0] * PROCESSES, output
    wanted = [flat(jax.value_and_grad(f)(MODEL, *BATCH)) for f in (reduced, reduced, as_torch)]
    for process in range(PROCESSES):
        found = np.load(tmp_path / f"{process}.npy")
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)
    parts = list(zip(*(np.split(array, DEVICES) for array in BATCH), strict=True))
    for f, (loss, *_) in ((reduced, wanted[0]), (as_torch, wanted[2])):
        means = [f(MODEL, *part) for part in parts]
        assert not np.isclose(np.nanmean(means), loss, rtol=0.1)  # What it guards against.


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]))
