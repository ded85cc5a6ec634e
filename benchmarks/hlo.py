"""Compiled text as instructions: the one parser, for the tests' probes and for the chips' costs."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple


class Instruction(NamedTuple):
    """A line of a compiled program."""

    name: str
    type: str  # With the layout.
    op: str
    operands: tuple[str, ...]
    computation: str
    called: tuple[str, ...]  # Other computations.
    root: bool
    rest: str  # What follows the operation's name: operands, attributes, notes of the compiler.

    @property
    def arrays(self) -> list[tuple[str, tuple[int, ...]]]:
        """The dtypes and sizes of the result: of one array, or of all in a tuple."""
        found = re.findall(r"([a-z]\w*)\[([\d,]*)\]", self.type)
        return [(dtype, tuple(int(n) for n in dims.split(",") if n)) for dtype, dims in found]

    @property
    def dims(self) -> tuple[int, ...]:
        """The sizes of an array; of a tuple, those of its first."""
        return self.arrays[0][1] if self.arrays else ()

    def calls(self, role: str) -> str:
        """The computation that it calls as its `body`, its `condition`, ..."""
        found = re.search(rf"\b{role}=%?([\w.\-]+)", self.rest)
        assert found is not None, (self.name, role)
        return found[1]


HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|\w+_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
COLLECTIVE = re.compile(r"(all|collective|ragged)-[a-z\-]+|reduce-scatter")


@functools.lru_cache(maxsize=8)
def parsed(text: str) -> tuple[tuple[Instruction, ...], str]:
    """All instructions of a compiled program, and the name of the computation it starts with."""
    found, computation, entry = [], "", ""
    for line in text.splitlines():
        if head := HEAD.match(line):
            computation = head[2]
            entry = computation if head[1] else entry
        elif match := LINE.match(line):
            root, name, kind, op, rest = match.groups()
            operands = tuple(re.findall(r"%([\w.\-]+)", rest.split(")")[0]))
            branches = [x.strip().lstrip("%") for b in BRANCHES.findall(rest) for x in b.split(",")]
            called = (*CALLED.findall(rest), *branches)
            found.append(
                Instruction(name, kind, op, operands, computation, called, bool(root), rest)
            )
    assert entry
    assert found
    return tuple(found), entry


def collectives(found: Iterable[Instruction]) -> list[Instruction]:
    """What devices tell each other: of instructions, those that talk."""
    return [i for i in found if COLLECTIVE.fullmatch(i.op) and not i.op.endswith("-done")]
