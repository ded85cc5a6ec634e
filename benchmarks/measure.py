"""How contenders are compiled and timed: in turns, in one process, until the spread is known."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from benchmarks.inputs import Arrays
from benchmarks.workloads import Workload

MEGABYTE = 1e6
ROUNDS = range(9, 60)  # At least, at most.
SHORTEST = 5e-3  # A sample, in seconds; what is faster runs several times in it.
# The threads of OpenMP keep a core busy for up to 9 ms after torch is done, and would take it from
# the next contender: a sample begins when what runs has had the machine to itself for this long.
SETTLING = 10e-3


@dataclasses.dataclass(frozen=True)
class Contender:
    """One implementation, compiled, on its inputs."""

    name: str
    start: Callable[[], Any]  # May return before the result is there.
    wait: Callable[[Any], Any]
    value: float
    compile_seconds: float | None = None
    bytes_accessed: float | None = None  # By XLA's estimate, like the next.
    temporaries: float | None = None

    def run(self, times: int = 1) -> None:
        """Returns when the results are there, and on a GPU starts each before the last is there."""
        for _ in range(times - 1):
            result = self.start()
            if jax.default_backend() == "cpu":  # They would take each other's cores.
                self.wait(result)
        self.wait(self.start())


@dataclasses.dataclass(frozen=True)
class Timing:
    """What the rounds say of one contender; ratios are to jaxloss in the same round."""

    seconds: float
    ratio: float
    spread: tuple[float, float]  # Quartiles of the ratio.


def compile_seconds(workload: Workload, arrays: Arrays) -> dict[str, float]:
    """How long jaxloss and its peer in JAX take from the function to the program."""
    return {
        name: _timed(lambda loss=loss: _program(loss, workload, arrays))[0]
        for name, loss in _in_jax(workload).items()
    }


def contenders(
    workload: Workload, arrays: Arrays, torch: Any, seconds: dict[str, float]
) -> list[Contender]:
    """jaxloss first, then its peers; torch's where torch is given, and cuDNN's through it.

    `seconds` are those of `compile_seconds`.
    """
    found = [
        _ready(name, loss, workload, arrays, seconds[name])
        for name, loss in _in_jax(workload).items()
    ]
    if torch is not None:
        try:
            found += _all_in_torch(workload, arrays, torch)
        except (AttributeError, ImportError, OSError) as error:  # An older torch, or no torchaudio.
            message = f"{workload.name}: left out torch {torch.__version__}: {error}"
            tqdm.write(message, file=sys.stderr)
    return found


def _in_jax(workload):
    return {"jaxloss": workload.jaxloss, workload.peer_name: workload.peer}


def _program(loss, workload, arrays):
    wanted = jax.value_and_grad(loss, workload.floats) if workload.floats else loss
    return jax.jit(wanted).lower(*arrays).compile()


def _ready(name, loss, workload, arrays, seconds) -> Contender:
    if not workload.floats:
        # jaxloss's functions are compiled as they are.
        call = loss if name == "jaxloss" else jax.jit(loss)
        value = float(call(*arrays))
        start = functools.partial(call, *arrays)
        return Contender(name, start, jax.block_until_ready, value, seconds)
    program = _program(loss, workload, arrays)
    memory, cost = program.memory_analysis(), program.cost_analysis()
    return Contender(
        name,
        functools.partial(program, *arrays),
        jax.block_until_ready,
        float(program(*arrays)[0]),
        seconds,
        cost.get("bytes accessed") if cost else None,
        memory.temp_size_in_bytes if memory else None,
    )


def _all_in_torch(workload, arrays, torch) -> Iterable[Contender]:
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    tensors = [torch.tensor(np.asarray(a), device=device) for a in arrays]
    for i in workload.floats:
        tensors[i].requires_grad_()

    def eager(*tensors):
        return workload.torch(torch, *tensors)

    losses = {"torch": eager}
    if workload.floats and not workload.fixed:
        losses["torch.compile"] = torch.compile(eager)
    if workload.cudnn and device == "cuda":
        losses["cuDNN"] = workload.cudnn(torch, *tensors)
    for name, loss in losses.items():
        torch._dynamo.reset()
        yield _in_torch(name, loss, tensors, workload.floats, torch)


def _in_torch(name, loss, tensors, floats, torch) -> Contender:
    def start():
        for i in floats:
            tensors[i].grad = None
        value = loss(*tensors)
        if floats:
            value.backward()
        return value

    def wait(value):
        if value.is_cuda:
            torch.cuda.synchronize()
        return value

    seconds, value = _timed(lambda: wait(start()))
    return Contender(name, start, wait, float(value.detach()), seconds)


def _timed(f):
    start = time.perf_counter()
    result = f()
    return time.perf_counter() - start, result


def compare(contenders: Sequence[Contender], budget: float) -> list[Timing]:
    """Times all of them in turns for about `budget` seconds."""
    repeats, settling = [], []
    for contender in contenders:
        contender.run()  # Warm-up; the compilation is past.
        seconds, _ = _timed(contender.run)
        repeats.append(max(1, round(SHORTEST / seconds)))
        settling.append(SETTLING if seconds < 20 * SETTLING else 0)  # Else less than 5 %.
    samples: list[list[float]] = [[] for _ in contenders]
    start = time.perf_counter()
    for turn in range(ROUNDS.stop):
        if turn >= ROUNDS.start and time.perf_counter() - start > budget:
            break
        # In an order of its own each time, so that none always follows the same one.
        for i in np.random.default_rng(turn).permutation(len(contenders)):
            begin = time.perf_counter()
            while time.perf_counter() - begin < settling[i]:
                contenders[i].run()
            begin = time.perf_counter()
            contenders[i].run(repeats[i])
            samples[i].append((time.perf_counter() - begin) / repeats[i])
    return [_timing(own, samples[0]) for own in samples]


def _timing(own: list[float], ours: list[float]) -> Timing:
    ratios = [a / b for a, b in zip(ours, own, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Timing(statistics.median(own), middle, (low, high))


def floor_bytes(workload: Workload, arrays: Arrays) -> int:
    """All inputs read once, and all gradients written once."""
    return sum(a.nbytes for a in arrays) + sum(arrays[i].nbytes for i in workload.floats)


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of copying an array much larger than the caches."""
    x = jax.numpy.zeros(2**26, "float32")
    copy = jax.jit(lambda x: x + 1)
    copy(x).block_until_ready()
    best = min(_timed(lambda: copy(x).block_until_ready())[0] for _ in range(10))
    return 2 * x.nbytes / best
