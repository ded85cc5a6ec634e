"""The cellar: every idiom whose only purpose is to persuade JAX or XLA.

Each says what happens without it, what it is worth, and when it may go. `tests/test_xla*.py` set
each beside what one would write instead, and fail on the day when that does as well.

What the tricks answer to, on a CPU: a sum in XLA computes its terms on the fly if they are a chain
of arithmetic (`abs`, `maximum`, `exp`, `log1p`, ...) that nothing else uses. A selection (`where`)
is stored first, and so is whatever has a second user: an error that the gradient needs as well, and
even a constant or a number per row that both broadcast to the full shape. So values are chains of
arithmetic, with one selection at the end if need be; derivatives are closed forms of the inputs,
where what the value computes as well is written in another way; and what costs more to compute
twice, such as exponentials, is stored once for both. With a last axis of size 1 XLA takes one
number at a time: what is computed for each example has no such axis, or cross entropy of 10 classes
takes 1.27 of the time, the poly loss of 3 classes 2.3, distances of 3 entries 1.4 and cosines 1.7.

Figures are those of a value and its gradient in float32. On a CPU, with JAX 0.10.2, they are the
time and XLA's count of bytes and of memory besides inputs and results; with JAX 0.12, on a TPU v5e
the cycles that XLA estimates, on an H100 the bytes of its kernels and the memory. Where a chip is
not named, no difference was found or nothing was measured.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._base import meshes
from jaxloss._base.conditions import checked as _checked
from jaxloss._base.linear_map import linear_map

P = TypeVar("P")
R = TypeVar("R")
T = TypeVar("T")
_Map = Callable[[jax.Array], jax.Array]


def _differentiated_as_x(f: _Map) -> jax.custom_jvp[jax.Array]:
    """f, which is x in another expression, with the tangent of x."""
    same = jax.custom_jvp(f)
    # JAX's rule of a maximum asks which operand equals it, and XLA may read x twice, differently.
    same.defjvp(lambda primals, tangents: (same(*primals), *tangents))
    return same


@_differentiated_as_x
def opaque(x: jax.Array) -> jax.Array:
    """x behind an operation that XLA does not look through; -inf becomes the least number.

    Without it XLA contracts the product that made x with the sum that takes it, and so leaves out
    the product's rounding; or, in JAX 0.10, it multiplies the constant factors of two such products
    together: 1e20 twice, which overflows. `lax.optimization_barrier` does not prevent the first in
    JAX 0.10, and ends the fusion: cosines take 1.4 of the cycles of a TPU, 400 MB for two inputs of
    200, and read and write 1.5 of the bytes on an H100. It may go when XLA rounds as written.
    """
    return jnp.maximum(x, float(jnp.finfo(x.dtype).min))


def maximum(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The maximum of x over `axes`, which are kept; on a TPU as a minimum of -x.

    There a maximum of what stands in memory takes longer than one of what is computed, and XLA
    widens the maximum of halves rather than the halves. Cross entropy of (8192, 128256) takes 1.22
    of the cycles on a v5e and 1.44 on a v6e, and in bfloat16 1.26 and 1.51. On an H100 either costs
    the same. A CPU stores -x where that comes from a product: 1.1 of the bytes of a linear loss
    in blocks. It may go when XLA for TPUs treats both alike.
    """

    def negated():
        return -jnp.min(-x, axes, keepdims=True)

    return lax.platform_dependent(tpu=negated, default=lambda: jnp.max(x, axes, keepdims=True))


@_differentiated_as_x
def recomputed(x: jax.Array) -> jax.Array:
    """x in another expression, for a derivative whose parts the value computes as well.

    To compute these parts twice from x takes less time than to store them once and read them twice,
    but the compiler recognises and stores them. For distances of (4096, 1000) that is 16 MB where
    there were none, and 1.1 of the bytes, on a CPU; on a TPU 200 MB for (65536, 768), though 0.8 of
    the cycles. It may go when XLA recomputes what is cheap to compute.

    It keeps -inf, which `opaque` does not: with that, a slope at -inf would be finite.
    """
    # The bound is a number that no one has: where `lax.scan` loses the rule, the derivative at a
    # tie would be wrong.
    return jnp.maximum(x, jnp.minimum(x, float(jnp.finfo(x.dtype).min) / 2))


def recomputed_difference(x: jax.Array, y: jax.Array) -> jax.Array:
    """x - y in another expression, where XLA would store the result of `recomputed` itself.

    Use it where only a sum takes the difference: in arithmetic alone no term is stored. As
    x - y in the smoothed cross entropy of (4096, 1000) it takes 16 MB where there were none, and
    1.25 of the bytes, on a CPU. It may go with `recomputed`.
    """
    return x + -y


def true_like(x: jax.Array) -> jax.Array:
    """True in the shape of x, a constant for XLA but not for JAX.

    When JAX differentiates a `lax.scan`, it moves out of it what does not change. So what is made
    from `jnp.ones_like` is stored before the loop, where XLA cannot fold it. In
    `F.linear_cross_entropy` of 2048 examples and 8192 classes that is 2.8 of the memory and 1.5 of
    the bytes on a CPU, 2.0 of the memory on an H100; in a loop over blocks of cross entropy 1.14
    and 1.16 on a CPU. It may go when JAX moves only what is costly to make.
    """
    return (x == x) | True


def filled(condition: jax.Array, x: jax.Array, fill: float) -> jax.Array:
    """`jnp.where` with a number, which in the body of a loop takes no memory.

    `jnp.where` lays the number out in the full shape, and JAX moves that out of the loop and stores
    it, as with `true_like`. Made from the condition it stays inside, where XLA folds it. Without it
    `F.linear_cross_entropy` takes 2.6 of the memory and 1.4 of the bytes on a CPU, 1.8 of the
    memory on an H100; a loop over blocks of cross entropy 1.2 and 1.14 on a CPU. It may go with
    `true_like`.
    """
    nothing = ~true_like(jnp.any(condition))  # One number: arrays would have to be sharded as x.
    return jnp.where(condition, x, nothing.astype(x.dtype) + fill)


def nan_where(bad: jax.Array, x: jax.Array) -> jax.Array:
    """x, and NaN where it is bad.

    The NaN is made only there, as infinity times 0. A literal NaN becomes an array under
    `jax_disable_jit`, which `jax_debug_nans` reports as a fault although the input is valid. It
    costs nothing, and may go when JAX looks only at results.
    """
    nan = jnp.where(bad, jnp.inf, 0).astype(x.dtype) * 0
    return jnp.where(bad, nan, x)


def shortcut(
    attempt: Callable[[], tuple[jax.Array, T]],
    careful: Callable[[], T],
    elsewhere: Callable[[], T] | None = None,
) -> T:
    """The result of `attempt`, if that says it is right, else of `careful`; on a CPU only.

    A CPU's programs branch at no cost. Elsewhere a branch ends a fusion, and the inputs are read
    once more: so there it is `elsewhere`, or `careful`. With the norms' three sums in one reading,
    as they are taken elsewhere, distances and cosines would take 1.8 and 1.2 of the time on a CPU.
    With an extra reading for the scale, as in `careful`, distances take 1.43 of the cycles of the
    plain formula on a TPU, and cosines 1.57; on an H100 both take 1.33 of the bytes. Under
    `jax.vmap` both branches are computed. With explicit mesh axes only the other one is, also
    without `jax.vmap`, since over such an axis JAX fails to map the choice: the triplet loss of
    (1024, 256) over two CPUs then moves 1.4 of the bytes. It may go when a CPU adds up as fast as
    it reads.
    """
    elsewhere = elsewhere or careful

    def attempted():
        is_right, result = attempt()
        if meshes.explicit_axes(is_right)[1]:
            return elsewhere()
        return lax.cond(is_right, lambda: result, careful)

    return lax.platform_dependent(cpu=attempted, default=elsewhere)


def sums_at_once(parts: tuple[jax.Array, ...], axes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """The sums over `axes`, which are kept, of several arrays made from the same operands.

    On a CPU XLA gives each sum a loop of its own, and stores what it sums: four sums made from
    (64, 131072) take 134 MB. As one reduction they take 34 MB and 0.19 of the bytes, in the same
    time. On a TPU that changes nothing, and on an H100 it stores what separate sums do not: 5.3 GB
    for the statistics of (8192, 128256) in bfloat16.

    A GPU takes at most 8 sums from one reading, and each two are the parts of one complex sum
    there. The cosines of (65536, 768) need 9 real ones, and then one vector is read twice: 1.17 of
    the bytes on an H100. On a TPU a complex sum takes 2.0 of the cycles.

    It may go when XLA reads once on a CPU, and takes more sums at once on a GPU.
    """
    axes, parts = tuple(sorted(axes)), meshes.varying(parts, parts)

    def separate(parts=parts):
        return tuple(jnp.sum(x, axes, keepdims=True) for x in parts)

    def reduced(_, parts):
        nothing = tuple(jnp.zeros((), x.dtype) for x in parts)
        found = lax.reduce(parts, nothing, lambda x, y: jax.tree.map(jnp.add, x, y), axes)
        return tuple(jnp.expand_dims(x, axes) for x in found)

    def spread(_, totals):
        return tuple(jnp.broadcast_to(y, x.shape) for x, y in zip(parts, totals, strict=True))

    def together():
        # JAX would differentiate the reduction as a tree.
        like = [[1 if a in axes else size for a, size in enumerate(x.shape)] for x in parts]
        zeros = tuple(jnp.zeros(shape, x.dtype) for shape, x in zip(like, parts, strict=True))
        return linear(reduced, spread, (), parts, meshes.varying(zeros, parts))

    def in_pairs():
        pairs = tuple(map(lax.complex, parts[::2], parts[1::2]))
        found = [part(x) for x in separate(pairs) for part in (lax.real, lax.imag)]
        return *found, *separate(parts[len(found) :])

    # Of a reduction of several arrays XLA does not know how devices add it up.
    at_once = separate if meshes.are_in_force(parts[0]) else together
    return lax.platform_dependent(cpu=at_once, cuda=in_pairs, rocm=in_pairs, default=separate)


def for_few(skipping: Callable[[], jax.Array], whole: Callable[[], jax.Array]) -> jax.Array:
    """The result of `skipping`, which leaves out blocks of work, or of `whole`, which does it all.

    A GPU waits at each branch and each turn of a loop, which takes longer than the matrix products:
    on an H100 the adaptive softmax of 2048 examples and 32000 classes takes 1099 kernels with
    16 blocks for each cluster. By leaving blocks out, a TPU takes 0.5 of the cycles of the plain
    formula, and a CPU less. It may go when a GPU branches at no cost.
    """
    return lax.platform_dependent(cuda=whole, rocm=whole, default=skipping)


def entry(
    shape: tuple[int, ...],
    axis: int,
    gathered: Callable[[], jax.Array],
    compared: Callable[[], jax.Array],
) -> jax.Array:
    """One entry along an axis, as `gathered` finds it, or on a TPU, if there are few, `compared`.

    A TPU gathers one number at a time, but reads its tiles of 128 numbers whole. Cross entropy of
    524288 labels among 4, 21 or 32 classes takes 0.53, 0.75 or 0.80 of the cycles on a v5e if all
    classes are compared with the label; among 64, in bfloat16, it takes 1.12. If the classes are in
    another dimension than the last, it takes 0.71 with 4, but in bfloat16 1.13 with 21. On a CPU
    comparisons take 1.1 to 1.4 of the time, and on an H100 the negative log-likelihood of 4 or 21
    classes 1.3 or 1.7 of it. This may go when a TPU gathers as fast as it reads.
    """
    few = 32 if axis == len(shape) - 1 else 4
    if shape[axis] > few:
        return gathered()
    return lax.platform_dependent(tpu=compared, default=gathered)


def by_sums(at_once: _Map, in_turn: _Map, x: jax.Array) -> jax.Array:
    """The result for x by sums over rows that need no other sum, or that need one after another.

    The Dice loss of 21 classes shows what either costs. A TPU reads everything anew for each sum
    that needs another one first: 1.2 of the cycles. A GPU keeps a row while it takes such sums, but
    not several of one array: 1.2 of the bytes on an H100; 1.1 if it stores what the value shares. A
    CPU stores what several sums read: 1.3 of the bytes. It may go when one form is best everywhere.
    """
    return lax.platform_dependent(
        x, cpu=in_turn, tpu=at_once, default=lambda x: in_turn(recomputed(x))
    )


def sum_over_last(term: Callable[..., jax.Array], *operands: jax.Array) -> jax.Array:
    """The sum of term(x, y, ...) over the last dimension of the operands, which term does not see.

    Up to 8 terms are written out one by one. The result of a sum over a dimension is stored by XLA
    on a GPU, instead of computed where it is used: in the gradient of 8 labels' log-probabilities
    of (8192, 128256) in bfloat16 that is 4.2 GB and 2.0 of the bytes on an H100. A hundred terms
    written out take XLA for TPUs many minutes to compile. On a CPU XLA stores all terms of a sum
    over a dimension: for 20 labels of (256, 640) 14 MB, where a loop takes 1.4. It may go when XLA
    computes the terms of a sum on the fly.
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


def scan(
    step: Callable[[Any, Any], tuple[Any, Any]],
    start: Any,
    inputs: Any,
    *,
    reverse: bool = False,
    on_gpu: int = 8,
) -> tuple[Any, Any]:
    """`lax.scan` of steps so small that what counts is how many kernels they take.

    XLA for GPUs and TPUs makes one kernel of a few steps that stand one behind the other, but not
    of the turns of a loop. With 1, 4, 8 or 16 steps in a turn an H100 takes 15.2, 10.1, 6.4 or
    4.3 ms for CTC of (16, 1000, 128, 100), whose loop is over 16 frames, and 14.9, 5.7, 3.8 or
    3.3 ms for an alignment of 1000. To compile CTC takes 2.0, 3.0, 4.5 or 7.5 s, and the
    transducer, whose steps are longer and which gains nothing beyond four, 2, 3, 6 or 24 s. A TPU
    v5e takes 0.61 of the cycles with four steps, and more than that with 16. On a CPU each entry of
    the last of four computes those before it anew, in 4 to 6 times the time. It may go when XLA
    keeps a loop inside a kernel.
    """

    def by(steps):
        return lambda: lax.scan(step, start, inputs, reverse=reverse, unroll=steps)

    return lax.platform_dependent(cpu=by(1), tpu=by(4), default=by(on_gpu))


def by_count(count: jax.Array, run: Callable[[Callable[..., Any]], R]) -> R:
    """run(repeat), with repeat(step, x) what `lax.fori_loop(0, count, step, x)` is.

    A step does nothing from `count` on. So up to four stand behind one branch, without a loop, at
    each turn of which a GPU would wait, and of more four share a turn, and with it the readings of
    what is carried. The multi-label margin of (4096, 1000) with three labels costs, as compiled,
    1.0 of the plain formula for three on an H100 and 0.73 on a TPU v5e, and with the loop 2.7 and
    1.2; an H100 takes 2.1 of its time, and with the loop 4.0. On a CPU each step has its own pass
    over memory in any case. It may go when XLA puts the turns of a loop together.
    """

    def turn(step, i, so_far):
        for k in range(4):
            so_far = step(4 * i + k, so_far)
        return so_far

    def by_four(step, start):
        return lax.fori_loop(0, -(-count // 4), functools.partial(turn, step), start)

    few = functools.partial(run, lambda step, start: turn(step, 0, start))
    return lax.platform_dependent(
        cpu=lambda: run(functools.partial(lax.fori_loop, 0, count)),
        default=lambda: lax.cond(count <= 4, few, lambda: run(by_four)),
    )


def linear(
    f: Callable[[P, T], R],
    transpose: Callable[[P, R], T],
    given: P,
    x: T,
    like: R,
) -> R:
    """f(given, x), shaped as `like`, for an f that is linear in x, with its transpose by hand.

    The transpose that JAX makes of a gather is a scatter, and that of a loop over blocks keeps
    another array of the kernel's size: for 1024 features and 8192 classes 51 MB instead of 18, and
    1.6 of the bytes, on a CPU. This is a primitive of its own, since
    `jax.custom_derivatives.linear_call` cannot be vmapped. A linear equation with its own solver
    can, but all its parts have to vary over the same devices of a `jax.shard_map`, so that the
    gradient of what devices share would be whole and in float32 on each before it is added up. It
    may go when `linear_call` can be mapped.
    """
    return linear_map(f, transpose, given, x, like)


def checked(values: T, conditions: Sequence[tuple[jax.Array, str]]) -> T:
    """The values; under `checkify.checkify` an error with a message where a condition fails.

    JAX counts a `checkify.debug_check` as an effect, in programs that nobody checkifies as well,
    and has no fast way to start a program with effects: a compiled step takes 0.2 to 0.4 ms instead
    of 0.01 to start on a busy CPU, and 0.1 to 0.2 ms more beside an H100. This is a primitive
    without effects. Its results are the values, so that it stays wherever these are used; its rule
    for checkify is beyond JAX's public interface. It may go when a `debug_check` is no effect.
    """
    if not conditions:
        return values
    holds, messages = zip(*conditions, strict=True)
    # Each by itself, so that what nobody uses goes with all that makes it.
    return jax.tree.map(lambda x: _checked(x, holds, messages), values)


def apart(x: T) -> T:
    """x, made before the operation that reads it, and not inside it.

    XLA for TPUs fuses the cutting of a block out of an array into the matrix product that reads it,
    and cuts again for every tile: for 8192 examples of 4096 features and 128256 classes in bfloat16
    the product takes 81 million cycles on a v5e instead of 68, and loss and gradient 360 instead of
    335. On a CPU and an H100 the only change is that the block is stored. It may go when XLA weighs
    this itself.

    On a CPU XLA hands sums of plain arithmetic to YNNPACK. That of JAX 0.12 keeps the first indices
    below 16 that a sum makes with `iota`, and takes them for those of all later sums in the same
    process: after a sum over 5 classes, one over 6 is wrong. Indices made before are right, and the
    sum takes 0.8 of the time. It may go with JAX 0.12.
    """
    return lax.optimization_barrier(x)


def tied(value: jax.Array, to: Any) -> jax.Array:
    """The value, which now counts as depending on all numbers in `to`.

    Inside `jax.shard_map` JAX infers from what a value depends on over which devices it varies,
    which must be the same in both branches of a condition. XLA folds this away. It may go once
    branches may differ.
    """
    leaves = [x for x in jax.tree.leaves(to) if jnp.issubdtype(x.dtype, jnp.floating)]
    nothing = sum(jnp.sum(x).astype(value.dtype) for x in leaves)
    return value + jnp.where(False, nothing, 0).astype(value.dtype)
