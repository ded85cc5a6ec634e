"""How often a compiled program runs each of its instructions: loops and branches unrolled."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

from benchmarks import hlo
from benchmarks.hlo import Instruction

# These hand on their first operand as it is.
_VIEWS = {"bitcast", "copy", "convert", "reshape", "copy-start", "copy-done"}
_HOLDS: dict[str, Callable[[int, int], bool]] = {
    "LT": int.__lt__, "LE": int.__le__, "GT": int.__gt__, "GE": int.__ge__, "NE": int.__ne__,
}  # fmt: skip


class Run(NamedTuple):
    """An instruction that stores its result, and how often it does."""

    instruction: Instruction
    times: int
    looped: bool  # Whether a loop repeats it.


class Program:
    """A compiled program by its computations."""

    def __init__(self, text: str):
        found, self.entry = hlo.parsed(text)
        self.computations: dict[str, dict[str, Instruction]] = {}
        self._loops: dict[str, Instruction] = {}  # By their bodies and conditions.
        for i in found:
            self.computations.setdefault(i.computation, {})[i.name] = i
            if i.op == "while":
                self._loops |= {i.calls("body"): i, i.calls("condition"): i}
        self.uncounted: set[str] = set()  # Loops whose number of turns the text does not tell.

    def root(self, computation: str) -> Instruction:
        return next(i for i in self.computations[computation].values() if i.root)

    def operands(self, i: Instruction) -> list[Instruction]:
        return [self.computations[i.computation][name] for name in i.operands]

    def runs(self, price: Callable[[Instruction], float]) -> list[Run]:
        """What the program runs; of a branch's alternatives, the dearest by the price."""
        self.uncounted.clear()
        return self._runs(self.entry, price)

    def _runs(self, computation, price):
        found = []
        for i in self.computations[computation].values():
            if i.op == "while":
                turns = self.turns(i)
                if turns is None:
                    self.uncounted.add(i.name)
                    turns = 1
                body = self._runs(i.calls("body"), price)
                found += [Run(run.instruction, turns * run.times, True) for run in body]
            elif i.op == "conditional":
                branches = [self._runs(branch, price) for branch in i.called]
                found += max(
                    branches, key=lambda runs: sum(r.times * price(r.instruction) for r in runs)
                )
            elif i.op in ("call", "async-start", "call-start"):
                for called in i.called:
                    found += self._runs(called, price)
            else:
                found.append(Run(i, 1, False))
        return found

    def inside(self, i: Instruction) -> list[Instruction]:
        """An instruction, and all those that it is made of."""
        parts = [part for c in i.called for part in self.computations[c].values()]
        return [i, *(x for part in parts for x in self.inside(part))]

    def turns(self, loop: Instruction) -> int | None:
        """How often a loop's body runs, by the compiler's note or by what the loop counts."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(known[1])
        test = self.root(loop.calls("condition"))
        direction = re.search(r"direction=(\w\w)", test.rest)
        if test.op != "compare" or direction is None or direction[1] not in _HOLDS:
            return None
        counter, limit = (self._seen(i) for i in self.operands(test))
        if counter.op != "get-tuple-element":
            return None
        index = _index(counter)
        start, step = self._initial(loop, index), self._step(loop.calls("body"), index)
        end = self._number(limit)
        if start is None or end is None or not step:
            return None
        if not _HOLDS[direction[1]](start, end):
            return 0
        distance = (end - start) / step
        if distance < 0:  # It would go on until the integers overflow.
            return None
        through = direction[1] in ("LE", "GE")
        return math.floor(distance) + 1 if through else math.ceil(distance)

    def _seen(self, i):
        """Through views: where a value comes from."""
        while i.op in _VIEWS:
            i = self.operands(i)[0]
        return i

    def _number(self, i):
        """An integer that is known: a constant, also one that loops hand through."""
        i = self._seen(i)
        if i.op == "constant":
            found = re.match(r"-?\d+\)", i.rest)
            return int(found[0][:-1]) if found else None
        if i.op != "get-tuple-element" or self.operands(i)[0].op != "parameter":
            return None
        loop, index = self._loops.get(i.computation), _index(i)
        if loop is None or not self._handed_through(loop.calls("body"), index):
            return None
        return self._initial(loop, index)

    def _initial(self, loop, index):
        carried = self.operands(loop)[0]
        if carried.op == "tuple":
            return self._number(self.operands(carried)[index])
        return None

    def _next(self, body, index):
        result = self.root(body)
        return self._seen(self.operands(result)[index]) if result.op == "tuple" else None

    def _handed_through(self, body, index):
        result = self._next(body, index)
        return result is not None and result.op == "get-tuple-element" and _index(result) == index

    def _step(self, body, index):
        result = self._next(body, index)
        if result is None or result.op not in ("add", "subtract"):
            return None
        old, step = (self._seen(i) for i in self.operands(result))
        if old.op == "constant" and result.op == "add":
            old, step = step, old
        if old.op != "get-tuple-element" or _index(old) != index:
            return None
        number = self._number(step)
        return -number if number is not None and result.op == "subtract" else number


def _index(i):
    found = re.search(r"index=(\d+)", i.rest)
    assert found is not None, i
    return int(found[1])
