"""A problem of linear layers, solved: cut for its devices, worked through, put together again."""

from __future__ import annotations

from typing import Any

from jaxloss.core.linear import blocks, cutting, mesh
from jaxloss.core.linear.problem import How, Rows, Shared


def of_examples(
    rows: Rows, shared: Shared, how: How, chunk_size: int | None, *, copies: int = 1
) -> Any:
    """What the objective makes of each example, 0 where it takes no part.

    With `copies` vmapped problems, blocks are smaller by that factor.
    """

    def found(rows, shared, how, axes):
        cut, how = cutting.cut(rows, shared, how, chunk_size, copies)
        return cutting.whole(blocks.results(cut, shared, how), rows)

    return mesh.by_device(found, rows, shared, how, lambda examples: examples)
