"""The cellar: every idiom whose only purpose is to persuade JAX or XLA.

Each says what happens without it, what it is worth, and when it may go. `tests/test_xla*.py` show
each beside what one would write instead: the day that does as well, the test fails.

What they answer to, on a CPU. A sum of XLA's takes in what it adds up if that is a chain of
arithmetic (`abs`, `maximum`, `exp`, `log1p`, ...) that nothing else uses. A selection (`where`) is
stored first, and so is whatever has a second user: an error that the gradient needs as well, and
even a constant or a number per row that both broadcast to the full shape. So values are chains of
arithmetic, with one selection at the end if need be; derivatives are closed forms of the inputs,
and write in another way what the value computes as well; and what costs more to compute twice, as
exponentials do, is stored once for both.

Figures are those of a value and its gradient in float32: on a CPU, with JAX 0.10.2, the time and
XLA's count of bytes and of memory besides inputs and results; with JAX 0.12, on a TPU v5e the
cycles that XLA estimates, on an H100 the bytes of its kernels and the memory. Where a chip is not
named no difference was found, or nothing measured.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._base import meshes
from jaxloss._base.linear_map import linear_map

P = TypeVar("P")
R = TypeVar("R")
T = TypeVar("T")


@jax.custom_jvp
def opaque(x: jax.Array) -> jax.Array:
    """x behind an operation that XLA does not look through; -inf becomes the least number.

    Without it XLA contracts the product that made x with the sum that takes it, and so leaves out
    its rounding; or, in JAX 0.10, it gathers the constant factors of two such products: 1e20
    twice, which overflows. `lax.optimization_barrier` does not prevent the first in JAX 0.10, and
    ends the fusion: with it cosines take 1.4 of the cycles of a TPU, 400 MB for two inputs of 200,
    and read and write 1.5 of the bytes on an H100. It may go when XLA rounds as written.
    """
    return jnp.maximum(x, float(jnp.finfo(x.dtype).min))


@opaque.defjvp
def _opaque_jvp(primals, tangents):
    # That of `maximum` asks whether x and the greater are equal, in two readings of x.
    return opaque(*primals), tangents[0]


def maximum(find: Callable[[jax.Array], jax.Array], x: jax.Array, given: jnp.dtype) -> jax.Array:
    """find(x), a maximum of what may have been widened from the dtype `given`.

    XLA widens the maximum instead of what it is taken of, and a TPU v5e, which has no arithmetic
    for halves, finds one of halves slowly: cross entropy of (8192, 128256) in bfloat16 takes 1.26
    of the cycles, of (16, 21, 512, 512) 1.23. It may go when XLA knows that.
    """
    if x.dtype == given:
        return find(x)
    found = find(opaque(x))
    least = float(jnp.finfo(x.dtype).min)  # No half is so low.
    return jnp.where(found <= least, -jnp.inf, found)


def recomputed(x: jax.Array) -> jax.Array:
    """x in another expression, for a derivative whose parts the value computes as well.

    Computed twice from x they take less time than stored once and read twice, but the compiler
    recognises and stores them. For distances of (4096, 1000) that is 16 MB where there were none,
    and 1.1 of the bytes, on a CPU; on a TPU 200 MB for (65536, 768), though 0.8 of the cycles. It
    may go when XLA makes again what is cheap to make.
    """
    return opaque(x)


def recomputed_difference(x: jax.Array, y: jax.Array) -> jax.Array:
    """x - y in another expression, where `recomputed` is itself taken for worth storing.

    That is where a sum takes it and nothing else does: in arithmetic alone no term is stored. As
    x - y in the smoothed cross entropy of (4096, 1000) it takes 16 MB where there were none, and
    1.25 of the bytes, on a CPU. It may go with `recomputed`.
    """
    return x + -y


def true_like(x: jax.Array) -> jax.Array:
    """True in the shape of x, a constant for XLA but not for JAX.

    What does not change JAX moves out of a `lax.scan` that it differentiates, and so what is made
    of `jnp.ones_like` is stored before the loop, where XLA cannot fold it. In
    `F.linear_cross_entropy` of 2048 examples and 8192 classes that is 2.8 of the memory and 1.5 of
    the bytes on a CPU, 2.0 of the memory on an H100; in a loop over blocks of cross entropy 1.14
    and 1.16 on a CPU. It may go when JAX moves only what is costly to make.
    """
    return (x == x) | True


def filled(condition: jax.Array, x: jax.Array, fill: float) -> jax.Array:
    """`jnp.where` with a number, which in the body of a loop takes no memory.

    `jnp.where` lays the number out in the full shape, and JAX moves that out of the loop and stores
    it, as with `true_like`. Made of the condition it stays inside, where XLA folds it. Without it
    `F.linear_cross_entropy` takes 2.6 of the memory and 1.4 of the bytes on a CPU, 1.8 of the
    memory on an H100; a loop over blocks of cross entropy 1.2 and 1.14 on a CPU. It may go with
    `true_like`.
    """
    nothing = ~true_like(jnp.any(condition))  # One number: arrays would have to be sharded as x.
    return jnp.where(condition, x, nothing.astype(x.dtype) + fill)


def nan_where(bad: jax.Array, x: jax.Array) -> jax.Array:
    """x, and NaN where it is bad.

    The NaN is made there only, as infinity times 0. A literal one becomes an array under
    `jax_disable_jit`, and `jax_debug_nans` takes that for a fault of valid input. It costs nothing,
    and may go when JAX looks at results only.
    """
    nan = jnp.where(bad, jnp.inf, 0).astype(x.dtype) * 0
    return jnp.where(bad, nan, x)


def shortcut(
    attempt: Callable[[], tuple[jax.Array, T]],
    careful: Callable[[], T],
    elsewhere: Callable[[], T] | None = None,
) -> T:
    """What `attempt` gives, if it says that it is right, or else `careful`; on a CPU only.

    Its programs branch for nothing. A branch elsewhere ends a fusion, and the inputs are read once
    more: so there it is `elsewhere`, or `careful`. With the norms' three sums in one reading, which
    they take elsewhere, distances and cosines would take 1.8 and 1.2 of the time on a CPU. With a
    reading for the scale, as `careful` there, distances take 1.43 of the cycles of the plain
    formula on a TPU, cosines 1.57; 1.33 of the bytes of either on an H100. Under `jax.vmap` both
    are computed. It may go when a CPU adds up as fast as it reads.
    """

    def attempted():
        is_right, result = attempt()
        return lax.cond(is_right, lambda: result, careful)

    return lax.platform_dependent(cpu=attempted, default=elsewhere or careful)


def sums(x: jax.Array, y: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The sums of x and of y over `axes`, which are kept: the parts of one complex sum.

    Only on a GPU, for which XLA takes no more than 8 sums of one reading. The cosines of (65536,
    768) need 9 that are real, and then one vector is read twice: 1.17 of the bytes on an H100. A
    complex sum takes a TPU 2.0 of the cycles. It may go when XLA takes more.
    """

    def together():
        both = jnp.sum(lax.complex(x, y), axes, keepdims=True)
        return lax.real(both), lax.imag(both)

    def apart():
        return jnp.sum(x, axes, keepdims=True), jnp.sum(y, axes, keepdims=True)

    return lax.platform_dependent(cuda=together, rocm=together, default=apart)


def sums_at_once(parts: tuple[jax.Array, ...], axes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """The sums of several arrays made of the same ones over `axes`, which are kept.

    On a CPU XLA gives each sum a loop of its own, with what it sums stored: four sums made of
    (64, 131072) take 134 MB. As one reduction of all they take 34 MB, 0.19 of the bytes, as long.
    On a TPU that changes nothing, and on an H100 it stores what separate sums do not: 5.3 GB for
    the statistics of (8192, 128256) in bfloat16. It may go when XLA for a CPU reads once.
    """
    axes = tuple(sorted(axes))
    if meshes.are_in_force(parts[0]):
        return _separate(parts, axes)  # Only of those XLA knows how devices add them up.
    return _at_once(parts, axes)


def _separate(parts: tuple[jax.Array, ...], axes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    return tuple(jnp.sum(x, axes, keepdims=True) for x in parts)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _at_once(parts: tuple[jax.Array, ...], axes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    def together():
        nothing = tuple(jnp.zeros((), x.dtype) for x in parts)
        found = lax.reduce(parts, nothing, lambda x, y: jax.tree.map(jnp.add, x, y), axes)
        return tuple(jnp.expand_dims(x, axes) for x in found)

    return lax.platform_dependent(cpu=together, default=lambda: _separate(parts, axes))


@_at_once.defjvp
def _at_once_jvp(axes, primals, tangents):
    # JAX would differentiate the reduction as a tree.
    (parts,), (dots,) = primals, tangents
    return _at_once(parts, axes), _separate(dots, axes)


def for_few(skipping: Callable[[], jax.Array], whole: Callable[[], jax.Array]) -> jax.Array:
    """What either gives, by leaving out blocks of work or by doing all of it at once.

    A GPU waits for each branch and each turn of a loop, and multiplies matrices faster than it does
    that: on an H100 the adaptive softmax of 2048 examples and 32000 classes takes 1099 kernels by
    16 blocks of each cluster. A TPU takes 0.5 of the cycles of the plain formula by leaving blocks
    out, and a CPU less. It may go when a GPU branches for nothing.
    """
    return lax.platform_dependent(cuda=whole, rocm=whole, default=skipping)


def sum_where(
    total: Callable[[jax.Array | bool], jax.Array], rows: jax.Array, x: jax.Array
) -> jax.Array:
    """total(rows & x), for rows that are known after another sum.

    Cross entropy with class probabilities shows what either form costs. On a CPU a second sum takes
    a loop of its own, with what it sums stored: twice the memory, 1.3 of the bytes, 1.1 to 1.4 of
    the time. Where a sum needs another one first, the others read everything anew: 1.2 of the
    cycles of a TPU, 1.2 of the bytes on an H100. It may go when one form is best on all.
    """
    return lax.platform_dependent(
        cpu=lambda: total(rows & x),
        default=lambda: jnp.where(rows, total(x), total(False)),
    )


def sum_over_last(term: Callable[..., jax.Array], *operands: jax.Array) -> jax.Array:
    """The sum of term(x, y, ...) over the last dimension of the operands, which term does not see.

    Up to 8 are written out one by one. As a sum over a dimension XLA for a GPU stores it, and does
    not make it inside of what takes it: in the gradient of 8 labels' log-probabilities of (8192,
    128256) in bfloat16 that is 4.2 GB and 2.0 of the bytes on an H100. Written out, a hundred take
    XLA for TPUs many minutes to compile. On a CPU it stores all that such a sum adds: of 20 labels
    of (256, 640) 14 MB where in a loop it is 1.4. It may go when XLA takes in what it sums.
    """
    count = operands[0].shape[-1]

    def whole():
        return jnp.sum(jax.vmap(term, -1, -1)(*operands), -1)

    def in_turn():
        (*first,), (*rest,) = ([x[part] for x in columns] for part in (0, slice(1, None)))
        return lax.scan(lambda total, x: (total + term(*x), None), term(*first), rest)[0]

    columns = [jnp.moveaxis(x, -1, 0) for x in operands]
    if not count:
        return whole()
    if count > 8:
        return lax.platform_dependent(cpu=in_turn, default=whole)
    total, *others = (term(*(x[k] for x in columns)) for k in range(count))
    return sum(others, total)


def linear(
    f: Callable[[P, T], R],
    transpose: Callable[[P, R], T],
    given: P,
    x: T,
    like: R,
) -> R:
    """f(given, x), shaped as `like`, for an f that is linear in x, with its transpose by hand.

    The transpose that JAX makes of a gather is a scatter, and that of a loop over blocks keeps
    another array of the kernel's size: of 1024 features and 8192 classes 51 MB instead of 18, and
    1.6 of the bytes, on a CPU. It is a primitive of its own: `jax.custom_derivatives.linear_call`
    cannot be vmapped, and of a linear equation with its own solver, which can be, all parts have to
    vary over the same devices of a `jax.shard_map`, so that the gradient of what devices share is
    whole and in float32 on each before it is added up. It may go when `linear_call` can be mapped.
    """

    leaves, tree = jax.tree.flatten(x)
    known, tree_known = jax.tree.flatten(given)
    wanted, tree_wanted = jax.tree.flatten(like)

    def there(known, leaves):
        return jax.tree.leaves(f(tree_known.unflatten(known), tree.unflatten(leaves)))

    def back(known, leaves):
        known, leaves = tree_known.unflatten(known), tree_wanted.unflatten(leaves)
        return jax.tree.leaves(transpose(known, leaves))

    return tree_wanted.unflatten(linear_map(there, back, known, leaves, wanted))


def apart(x: jax.Array) -> jax.Array:
    """x, made before what reads it and not inside of that.

    XLA for TPUs fuses cutting a block out of an array into the matrix product that reads it, and
    cuts again for every tile: at 8192 examples of 4096 features and 128256 classes in bfloat16 the
    product takes 81 million cycles on a v5e instead of 68, and loss and gradient 360 instead of
    335. On a CPU and an H100 nothing changes but that the block is stored. It may go when XLA
    weighs this itself.
    """
    return lax.optimization_barrier(x)


def tied(value: jax.Array, to: Any) -> jax.Array:
    """The value, which now counts as depending on all numbers in `to`.

    Inside `jax.shard_map` JAX tells from that over which devices a value varies, which must be the
    same in both branches of a condition. XLA folds it away. It may go where branches may differ.
    """
    leaves = [x for x in jax.tree.leaves(to) if jnp.issubdtype(x.dtype, jnp.floating)]
    nothing = sum(jnp.sum(x).astype(value.dtype) for x in leaves)
    return value + jnp.where(False, nothing, 0).astype(value.dtype)
