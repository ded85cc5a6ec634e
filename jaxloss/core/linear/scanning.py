"""A loop over blocks of examples that can skip some of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._base import xla
from jaxloss.core.linear.problem import Rows


def each(f: Callable[[Any], Any], blocks: Any, besides: Any = None) -> Any:
    """f of every block; see `scan` for `besides`."""
    return scan(lambda _, block: (None, f(block)), None, blocks, besides)[1]


def scan(f: Callable, carry: Any, blocks: Any, besides: Any = None) -> tuple[Any, Any]:
    """`lax.scan`, without a loop where there is one block only.

    What a block makes is not kept for another derivative: that would be as much as all blocks make.
    Given what f reads besides, blocks in which no example takes part are skipped: the carry stays
    as it is, and the output is 0.
    """
    if besides is not None:
        f = _where_any(f, besides)
    f = jax.checkpoint(f, prevent_cse=False)
    if len(jax.tree.leaves(blocks)[0]) > 1:
        return lax.scan(f, carry, blocks)
    carry, out = f(carry, jax.tree.map(lambda x: x[0], blocks))
    return carry, jax.tree.map(lambda x: x[None], out)


def _where_any(f: Callable, besides: Any) -> Callable:
    f = jax.jit(f)  # Traced once for the shapes and the branch.

    def skipping(carry, block):
        rows: Any = block if isinstance(block, Rows) else block[0]

        def skip(carry, block):
            _, out = jax.eval_shape(f, carry, block)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), out)
            # As inside `jax.shard_map` they vary over the same devices as what f gives.
            return carry, jax.tree.map(lambda x: xla.tied(x, (block, besides)), zeros)

        return lax.cond(jnp.any(rows.where), f, skip, carry, block)

    return skipping
