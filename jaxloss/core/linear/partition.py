"""What is differentiated: a tree in two parts, each with None where the other has a leaf."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxloss._base import checks

T = TypeVar("T")


def tangents_of(tangents: T) -> T:
    """The tangents of what is differentiated, with None for what is not."""
    return jax.tree.map(lambda x: None if _is_zero(x) else x, tangents, is_leaf=_is_zero)


def partition(tree: T, moving: Any) -> tuple[T, T]:
    """The leaves that `moving` has as well, and the others."""
    own = jax.tree.map(lambda m, x: None if m is None else x, moving, tree, is_leaf=_is_none)
    rest = jax.tree.map(lambda m, x: x if m is None else None, moving, tree, is_leaf=_is_none)
    return own, rest


def combine(tree: T, rest: T) -> T:
    """Puts together the two trees that `partition` makes."""
    return jax.tree.map(lambda x, y: y if x is None else x, tree, rest, is_leaf=_is_none)


def differentiable(tree: T) -> tuple[T, T]:
    """The leaves that are floating-point, and the others."""
    moving = jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.floating) else None, tree)
    return partition(tree, moving)


def widened(x: jax.Array) -> jax.Array:
    """Halves as float32; everything else as it is."""
    return x.astype(checks.wide(x.dtype)) if jnp.issubdtype(x.dtype, jnp.floating) else x


def unmoved(tree: T) -> T:
    """The tangents of leaves that have none."""
    return jax.tree.map(lambda x: SymbolicZero(jax.typeof(x).to_tangent_aval()), tree)


def _is_zero(x: object) -> bool:
    return isinstance(x, SymbolicZero)


def _is_none(x: object) -> bool:
    return x is None
