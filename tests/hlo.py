"""Probes of lowered and compiled text, each of which finds its planted fault.

What JAX hands to XLA is the same for every platform. What XLA makes of it is read as a user's
machine compiles it, where the other tests save themselves the time. The machine code is no part of
the text: it is optimised only where its numbers are the subject.
"""

import math
import re
from importlib import metadata
from typing import Any

import jax

from benchmarks.hlo import collectives as collectives
from benchmarks.hlo import parsed

# Of what `conftest.py` switches off, what changes more than the machine code.
DEFAULTS: dict[str, Any] = {}
if metadata.version("jaxlib").startswith("0.10."):
    DEFAULTS["xla_cpu_use_fusion_emitters"] = True


def lowered(f, *args):
    """The program of f for these arguments, as XLA gets it."""
    return jax.jit(f).lower(*args)


def compiled(f, *args):
    """The compiled program of f for these arguments, as it is read: two thirds of the time."""
    return lowered(f, *args).compile(compiler_options=DEFAULTS)


def partitioned(f, *args):
    """The compiled program of f for these arguments, to read what travels: a third of the time.

    Devices have their parts before anything is fused.
    """
    return lowered(f, *args).compile()


def optimised(f, *args):
    """The compiled program of f for these arguments, with the numbers that a user gets."""
    options: dict[str, Any] = DEFAULTS | {"xla_backend_optimization_level": 3}
    return lowered(f, *args).compile(compiler_options=options)


def instructions(program):
    """All of a compiled program's."""
    return parsed(program.as_text())[0]


def within(program, roots):
    """The computations that these reach, and they themselves."""
    reached, calls = set(roots), instructions(program)
    while more := {c for i in calls if i.computation in reached for c in i.called} - reached:
        reached |= more
    return reached


def in_loops(program):
    """The instructions that a loop repeats."""
    loops = [c for i in instructions(program) if i.op == "while" for c in i.called]
    repeated = within(program, loops)
    return [i for i in instructions(program) if i.computation in repeated]


def executed(program):
    """Those whose results are stored: of the whole program and its loops and branches.

    What a fusion computes on its way stays in registers.
    """
    found, entry = parsed(program.as_text())
    control = {"while", "conditional", "call"}
    reached = {entry}
    while (
        more := {c for i in found if i.computation in reached and i.op in control for c in i.called}
        - reached
    ):
        reached |= more
    return [i for i in found if i.computation in reached]


def stored(program, dims):
    """Arrays of this size that the program stores besides its arguments and its result."""
    entry = parsed(program.as_text())[1]
    views = {"parameter", "bitcast", "get-tuple-element", "tuple", "while", "conditional"}
    found = [i for i in executed(program) if i.op not in views and i.dims == tuple(dims)]
    results = {
        name
        for i in instructions(program)
        if i.computation == entry and i.root
        for name in (i.name, *(i.operands if i.op in views else ()))
    }
    return [i for i in found if i.name not in results]


def one_hots(program, dims):
    """Those of the stored arrays that are made of integers alone."""
    types = {i.name: i.type for i in instructions(program)}
    found = []
    for i in stored(program, dims):
        made_of = [types[name] for name in i.operands]
        size = ",".join(map(str, dims))
        if any(t.startswith("s32") for t in made_of) and not any(f"[{size}]" in t for t in made_of):
            found.append(i)
    return found


def gathering(program):
    """Collectives that move arrays to where they are not at home."""
    return [i for i in collectives(instructions(program)) if i.op != "all-reduce"]


def added_up(program):
    """The number of entries of each array that is added up over devices."""
    talk = [i for i in collectives(instructions(program)) if i.op == "all-reduce"]
    kinds = (re.findall(r"\w+\[([\d,]*)\]", i.type) for i in talk)
    return [math.prod(int(n) for n in dims.split(",") if n) for kind in kinds for dims in kind]


def copies(program):
    """Arrays copied or transposed, wherever."""
    return [i for i in instructions(program) if i.op in ("copy", "transpose")]


def operations(program, name):
    """How often an operation occurs in a program: as XLA gets it, or as it compiles it."""
    if isinstance(program, jax.stages.Lowered):
        return len(re.findall(rf'(?<!#)\bstablehlo\.{name}"?[ (]', program.as_text()))
    return sum(i.op == name for i in instructions(program))


def sequence(program):
    """The types and operations of a compiled program, in order, whatever their names are."""
    return [(i.type, i.op) for i in instructions(program)]


def mentions(program, word):
    """Whether a program has a word in it, as XLA gets it."""
    return word in program.as_text()


def scatters(f, *args):
    """As XLA gets them; what the compiler makes of other things is for it to answer."""
    return operations(lowered(f, *args), "scatter")


def gathers(f, *args):
    """As XLA gets them."""
    return operations(lowered(f, *args), "gather")


def products(f, *args):
    """The dtypes of the operands and of the result of each matrix product, as XLA gets it."""
    text = lowered(f, *args).as_text()
    kind = r"tensor<(?:\d+x)*(\w+)>"
    return re.findall(rf"stablehlo\.dot_general.* : \({kind}, {kind}\) -> {kind}", text)


def temporaries(program):
    """The bytes that a program stores besides its arguments and its results."""
    memory = program.memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


def cost(program, what):
    """What XLA estimates: "flops", or "bytes accessed"."""
    estimate = program.cost_analysis()
    assert estimate is not None
    return estimate[what]
