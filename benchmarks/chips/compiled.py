"""What a program compiled for a chip will cost there, as far as its text tells."""

from __future__ import annotations

import collections
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import jax

from benchmarks import hlo
from benchmarks.chips.loops import Program, Run
from benchmarks.chips.topology import Chip, Gpu
from benchmarks.hlo import Instruction

LAUNCH = 3e-6  # Seconds that a kernel takes at least, with what lies between it and the next.
REACHED = 0.9  # Of the bandwidth on the data sheet: 3.0 TB/s on an H100.

# Neither a kernel nor a movement of bytes.
_FREE = re.compile(
    r"parameter|constant|bitcast|get-tuple-element|tuple|after-all|partition-id|replica-id"
    r"|opt-barrier|add-dependency|domain|\w[\w\-]*-done"
)
_SLICES = ("slice", "dynamic-slice", "gather")
_LIBRARY = ("__cublas", "__cudnn")


def compiled(
    f: Callable[..., Any], arguments: Iterable[jax.ShapeDtypeStruct], chip: Chip
) -> tuple[jax.stages.Compiled, float]:
    """The program, and the seconds of a core that it took to compile."""
    start = sum(os.times()[:4])
    lowered = jax.jit(f).trace(*arguments).lower(lowering_platforms=(chip.platform,))
    program = lowered.compile()
    return program, sum(os.times()[:4]) - start


def costs(program: jax.stages.Compiled, chip: Chip) -> dict[str, Any]:
    """What is read of a program; `cost` is in cycles on a TPU, in seconds on a GPU."""
    memory, written = program.memory_analysis(), program.as_text()
    assert memory is not None
    assert written is not None
    text = Program(written)
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes
    found: dict[str, Any] = {
        "temporaries": memory.temp_size_in_bytes,
        "resident": kept - memory.alias_size_in_bytes,
    }
    if chip.platform == "tpu":
        runs = text.runs(cycles)
        found["cost"] = sum(run.times * cycles(run.instruction) for run in runs)
        found["unpriced"] = sum(run.times for run in runs if unpriced(run.instruction))
    else:
        assert chip.gpu is not None
        gpu = Kernels(text, chip.gpu)
        runs = text.runs(gpu.seconds)
        kernels = [run for run in runs if launched(run.instruction)]
        found["cost"] = sum(run.times * gpu.seconds(run.instruction) for run in kernels)
        found["kernels"] = sum(run.times for run in kernels)
        found["moved"] = round(sum(run.times * gpu.moved(run.instruction) for run in kernels))
    return found | {
        "products": dict(products(text, runs)),
        "sent": dict(sent(text, runs, looped=False)),
        "sent_in_loops": dict(sent(text, runs, looped=True)),
        "uncounted_loops": len(text.uncounted),
    }


def cycles(i: Instruction) -> int:
    """What a TPU's compiler estimates."""
    found = re.search(r'"estimated_cycles":"(\d+)"', i.rest)
    return int(found[1]) if found and not unpriced(i) else 0


def unpriced(i: Instruction) -> bool:
    """Whether the compiler says that it has no estimate, as for what another core does."""
    return f'"estimated_cycles":"{2**63 - 1}"' in i.rest


def launched(i: Instruction) -> bool:
    """Whether a GPU starts a kernel or a copy for it."""
    return not _FREE.fullmatch(i.op)


def products(text: Program, runs: Iterable[Run]) -> Counter[str]:
    """How often matrix products run, by the dtypes of their operands."""
    found: Counter[str] = Counter()
    for run in runs:
        for i in text.inside(run.instruction):
            if _is_product(i):
                found[" x ".join(_operand_dtypes(text, i))] += run.times
    return found


def sent(text: Program, runs: Iterable[Run], looped: bool) -> Counter[str]:
    """The bytes that a device gets or gives in collectives, by their kind."""
    found: Counter[str] = Counter()
    for run in runs:
        if run.looped == looped:
            for i in hlo.collectives(text.inside(run.instruction)):
                sizes = [_bytes(array) for array in i.arrays]
                # A start has its operands beside its results.
                size = max(sizes) if i.op.endswith("-start") else sum(sizes)
                found[i.op.removesuffix("-start")] += run.times * round(size)
    return found


class Kernels:
    """What those of a program cost."""

    def __init__(self, text: Program, gpu: Gpu):
        self._text, self._bandwidth, self._rates = text, gpu.bandwidth, gpu.rates()

    def seconds(self, i: Instruction) -> float:
        """A kernel's time: of its launch, its memory or its products, whichever is longest."""
        if not launched(i):
            return 0.0
        memory = self.moved(i) / (REACHED * self._bandwidth)
        return max(LAUNCH, memory, self._multiplying(i))

    def moved(self, i: Instruction) -> float:
        """The bytes that a kernel reads and writes, of a slice only the slice."""
        operands = self._text.operands(i)
        if i.op.startswith("fusion"):
            read = self._read(i.called[0], 1.0)
            results = _results(self._text, i.called[0])
        else:
            read = {n: self._share(i, n, 1.0, stored=True) for n in range(len(operands))}
            results = [i]
        return sum(self._written(i) for i in results) + sum(
            read.get(n, 0.0) * _size(operand) for n, operand in enumerate(operands)
        )

    def _read(self, computation, share):
        """The share that a fusion needs of each of its parameters."""
        # Slices of one array are added up; other users see the same entries.
        whole = {result.name: share for result in _results(self._text, computation)}
        stored, slices = set(whole), collections.defaultdict[str, float](float)
        parameters = {}
        for i in reversed(self._text.computations[computation].values()):
            needed = min(1.0, whole.get(i.name, 0.0) + slices[i.name])
            if i.op == "parameter":
                parameters[int(i.rest.split(")")[0])] = needed
                continue
            inner = self._read(i.called[0], needed) if i.op == "fusion" else None
            for n, operand in enumerate(i.operands):
                part = inner[n] if inner else self._share(i, n, needed, i.name in stored)
                if i.op in _SLICES and n == 0:
                    slices[operand] += part
                else:
                    whole[operand] = max(whole.get(operand, 0.0), part)
        return parameters

    def _share(self, user, position, needed, stored):
        """The share of an operand that its user reads, who is himself needed to a share."""
        if user.op in _SLICES and position == 0:
            return min(1.0, needed * _size(user) / max(1.0, _size(self._text.operands(user)[0])))
        if position == 0 and stored and self._in_place(user):
            return 0.0
        return needed

    def _in_place(self, i):
        """Whether it writes into its first operand, whose other entries stay."""
        if i.op not in ("dynamic-update-slice", "scatter"):
            return False
        written = _behind_bitcasts(self._text, self._text.operands(i)[0])
        return written.op == "parameter" or i.computation == self._text.entry

    def _written(self, i):
        if self._in_place(i):
            return _size(self._text.operands(i)[1 if i.op == "dynamic-update-slice" else -1])
        if i.op == "custom-call":  # Without the workspace of a library.
            return sum(_bytes(array) for array in i.arrays if array[0] != "s8")
        if i.op.endswith("-start"):
            return max(map(_bytes, i.arrays))
        return _size(i)

    def _multiplying(self, i):
        return sum(
            _operations(self._text, x) / self._rate(_operand_dtypes(self._text, x))
            for x in self._text.inside(i)
            if _is_product(x)
        )

    def _rate(self, dtypes):
        return min(self._rates.get(dtype, self._rates["f32"]) for dtype in dtypes)


def _results(text, computation):
    """The arrays that a fusion stores."""
    root = text.root(computation)
    found = text.operands(root) if root.op == "tuple" else [root]
    return [_behind_bitcasts(text, i) for i in found]


def _behind_bitcasts(text, i):
    while i.op == "bitcast":
        i = text.operands(i)[0]
    return i


def _size(i):
    return sum(map(_bytes, i.arrays))


def _bytes(array):
    dtype, dims = array
    if dtype in ("token", "opaque"):
        return 0
    bits = re.search(r"\d+", dtype)
    return math.prod(dims) * (int(bits[0]) / 8 if bits else 1)


def _is_product(i):
    return i.op in ("dot", "convolution") or (
        i.op == "custom-call" and any(f'custom_call_target="{x}' in i.rest for x in _LIBRARY)
    )


def _operand_dtypes(text, i):
    return [operand.arrays[0][0] for operand in text.operands(i)[:2]]


def _operations(text, i):
    """Of a product: two for each pair of numbers."""
    left = text.operands(i)[0].dims
    found = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', i.rest)
    contracted = [int(n) for n in re.findall(r"\d+", found[1])] if found else []
    return 2.0 * math.prod(i.dims) * math.prod(left[n] for n in contracted)
