"""Distances, cosines and absolute values alone: zeros, ties, sizes, infinities, in every mode."""

import decimal
import functools
import itertools
import math
from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from derivatives import SECOND, check
from jax import lax

from jaxloss._base import norms

inf, nan = math.inf, math.nan


def norm(x, p):
    """The p-norm of Decimals by its definition."""
    sizes = [abs(t) for t in x]
    if p == 0:
        return Decimal(sum(t != 0 for t in sizes))
    if math.isinf(p):
        return max(sizes) if p > 0 else min(sizes)
    if p < 0 and 0 in sizes:
        return Decimal(0)
    return sum(t ** Decimal(p) for t in sizes) ** (1 / Decimal(p))


def cosine(packed):
    """The cosine of two vectors of Decimals, each taken to be as long as the last one at least."""
    *x, eps = packed
    x1, x2 = x[: len(x) // 2], x[len(x) // 2 :]
    inner = sum(a * b for a, b in zip(x1, x2, strict=True))
    return inner / (max(norm(x1, 2), eps) * max(norm(x2, 2), eps))


@functools.cache
def differences(f, x, *options):
    """f(x, *options), its gradient and its Hessian at numbers that are not 0, with 30 digits."""
    with decimal.localcontext(prec=90):
        numbers = [*map(Decimal, x)]
        steps = [abs(t) * Decimal("1e-15") for t in numbers]

        def moved(*moves):
            there = [*numbers]
            for place, sign in moves:
                there[place] += sign * steps[place]
            return f(there, *options)

        def slope(i):
            return (moved((i, 1)) - moved((i, -1))) / (2 * steps[i])

        def curvature(i, j):
            ways = [(a, b) for a in (1, -1) for b in (1, -1)]
            total = sum(a * b * moved((i, a), (j, b)) for a, b in ways)
            return total / (4 * steps[i] * steps[j])

        places = range(len(x))
        curvatures = [[curvature(min(i, j), max(i, j)) for j in places] for i in places]
        value, *slopes = moved(), *map(slope, places)
        return float(value), np.array(slopes, float), np.array(curvatures, float)


def sizes(dtype):
    """Powers of two whose squares are out of range: about 1e29 and 1e-29 in float32."""
    far = jnp.finfo(dtype).maxexp * 3 // 4
    return [2.0**far, 2.0**-far]


def table(rows, scale, dtype):
    """Columns of the rows (vector, norm, slopes, curvatures), for vectors scaled up or down."""
    x, value, slopes, curvatures = map(np.array, zip(*rows, strict=True))
    return jnp.asarray(scale * x, dtype), (scale * value, slopes, curvatures / scale)


VECTORS = [(3, 4, -12), (-5, 2, 1), (1, 7, 3), (3000, -5, 30)]
nothing, unknown = np.zeros((3, 3)), np.full((3, 3), nan)
root, cube = math.sqrt(3), 91 ** (1 / 3)
# A vector with a 0, and vectors with ties: value, slopes, curvatures.
CORNERS = {
    0: [((3, 0, -4), 2, (0, 0, 0), nothing)],
    0.5: [
        ((3, 0, -4), 7 + 4 * root, (1 + 2 / root, 0, -(1 + root / 2)), unknown),
        ((0, 0, -2), 2, (0, 0, -1), unknown),
    ],
    1: [((3, 0, -4), 7, (1, 0, -1), nothing)],
    2: [
        (
            (3, 0, -4),
            5,
            (0.6, 0, -0.8),
            np.array([[0.128, 0, 0.096], [0, 0.2, 0], [0.096, 0, 0.072]]),
        )
    ],
    3: [((3, 0, -4), cube, (9 / cube**2, 0, -16 / cube**2), unknown)],
    inf: [
        ((3, 0, -4), 4, (0, 0, -1), nothing),
        ((4, -4, 1), 4, (1 / 2, -1 / 2, 0), nothing),
        ((2, -2, -2), 2, (1 / 3, -1 / 3, -1 / 3), nothing),
    ],
    -inf: [
        ((3, 0, -4), 0, (0, 0, 0), nothing),
        ((4, -2, 2), 2, (0, -1 / 2, 1 / 2), nothing),
        ((0, 5, 0), 0, (0, 0, 0), nothing),
    ],
    -1: [((3, 0, -4), 0, (0, 0, 0), nothing), ((0, 0, -4), 0, (0, 0, 0), nothing)],
}


@pytest.mark.parametrize("p", CORNERS)
def test_distance(p, dtype):
    # What is packed in one vector: the vectors x1 and x2, and eps.
    signs = np.hstack([np.eye(3), -np.eye(3), np.ones((3, 1))])

    def f(packed):
        x1, x2, eps = packed[..., :3], packed[..., 3:6], packed[..., 6:]
        return jnp.squeeze(norms.distance(x1, x2, eps, p, (packed.ndim - 1,)), -1)

    plain = [(x, *differences(norm, x, p)) for x in VECTORS]
    corners = [((0, 0, 0), 0, (0, 0, 0), nothing), *CORNERS[p]]
    corners += corners[:1] * (4 - len(corners))
    # As there is no more than one program for a shape, so there is one number of rows.
    for rows in (plain, corners):
        for scale in (1.0, *sizes(dtype)):
            x, (value, slopes, curvatures) = table(rows, scale, dtype)
            if p == 0:
                value = value / scale
            eps = scale * jnp.ones((len(x), 1), dtype)
            packed = jnp.concatenate([x + 6 * eps, 7 * eps + 0 * x, eps], -1)
            curvatures = signs.T @ curvatures @ signs
            terms = abs(p - 1) / np.where(value == 0, inf, value) if math.isfinite(p) else 0.0
            check(f, [packed], value, [slopes @ signs], [[curvatures]], terms=terms)


@pytest.mark.parametrize("p", [0.5, 2, inf])
def test_distance_along_several_axes(p):
    x = np.random.default_rng(0).integers(-9, 10, (2, 3, 4)).astype(np.float32)
    lines = np.moveaxis(x, 1, 0).reshape(3, 8)

    @jax.jit
    def f(x, empty):
        zero = jnp.zeros(())
        distances, pull = jax.vjp(lambda x: norms.distance(x, zero, zero, p, (0, 2)), x)
        return (
            distances,
            *pull(jnp.ones_like(distances)),
            norms.distance(empty, zero, zero, p, (1,)),
        )

    distances, slopes, nothing = f(x, jnp.zeros((2, 0)))
    value = [float(norm([Decimal(int(t)) for t in line], p)) for line in lines]
    np.testing.assert_allclose(distances, np.reshape(value, (1, 3, 1)), rtol=1e-6)
    # As that of any function that grows as its argument does.
    np.testing.assert_allclose(np.sum(slopes * x, (0, 2)), value, rtol=1e-6)
    np.testing.assert_array_equal(nothing, [[0], [0]])


@pytest.mark.parametrize("p", CORNERS)
def test_distance_of_what_is_not_finite(p):
    x = jnp.array([[3, inf, -4], [-inf, inf, inf], [0, -inf, 0], [1, nan, 2], [nan, inf, 0]])
    of_one_infinity = {0: 3, -inf: 3, -1: 12 / 7}.get(p, inf)
    of_infinities = 3 if p == 0 else inf
    beside_zeros = 1 if p == 0 else 0 if p < 0 else inf
    wanted = np.array([of_one_infinity, of_infinities, beside_zeros, nan, nan])
    if p == 0:  # NaN is not 0.
        wanted[3:] = 3, 2
    zero = jnp.zeros(())
    for rows in (jax.vmap, lambda f: f):
        got = jax.jit(rows(lambda x: norms.distance(x, zero, zero, p, (x.ndim - 1,))[..., 0]))(x)
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_cosine(dtype):
    def f(packed):
        x1, x2, eps = packed[..., :3], packed[..., 3:6], packed[..., 6]
        return norms.cosine(x1, x2, eps, (packed.ndim - 1,))[..., 0]

    def matches(packed, value, slopes, curvatures):
        packed = jnp.asarray(packed, dtype)
        curvatures = None if curvatures is None else [[curvatures]]
        check(f, [packed], value, [slopes], curvatures, cancels=True, modes=SECOND[:1])

    def by_definition(packed):
        rows = [differences(cosine, tuple(x)) for x in packed.tolist()]
        return [*map(np.array, zip(*rows, strict=True))]

    def and_eps(x, eps):
        return np.hstack([x, np.full((len(x), 1), eps)])

    plain = np.hstack([VECTORS, VECTORS[1:] + VECTORS[:1]]).astype(float)
    # None, one or both are shorter than eps.
    short = plain * np.repeat([(1, 1), (1 / 64, 1), (1, 1 / 64), (1 / 64, 1 / 64)], 3, 1)
    short = and_eps(short, 0.25)
    matches(short, *by_definition(short))
    # Without eps the lengths do not matter, though their squares be out of range. Curvatures are as
    # one over such a square: what a tiny vector has is out of range itself.
    value, slopes, curvatures = by_definition(and_eps(plain, 1e-9))
    huge, tiny = sizes(dtype)
    for pair in itertools.product((1.0, huge, tiny), repeat=2):
        s = np.append(np.repeat(pair, 3), 1)
        bent = None if tiny in pair else curvatures / s[:, None] / s
        matches(and_eps(plain, 0.0) * s, value, slopes / s, bent)
    # By both at once, or by one and eps, nothing is promised where one is 0.
    blocks = np.kron(np.eye(3), np.ones((3, 3)))[:7, :7]
    apart = np.where(blocks == 1, 0, nan) + np.zeros((4, 1, 1))
    for eps in (0.0, 0.25):
        for present in (np.eye(2)[[0, 1, 0, 1]], np.zeros((4, 2))):
            x = and_eps(plain * np.repeat(present, 3, 1), eps)
            matches(x, np.zeros(4), np.zeros((4, 7)), apart)


def test_absolute(dtype):
    x = np.array([-inf, -3, -1e-30, -0.0, 0, 1e-30, 2, inf])
    flat = np.zeros_like(x)
    check(norms.absolute, [jnp.asarray(x, dtype)], np.abs(x), [np.sign(x)], [[flat]])
    assert jnp.isnan(norms.absolute(jnp.asarray(nan, dtype)))


def test_absolute_of_complex(dtype):
    def f(x):
        return norms.absolute(lax.complex(x[..., 0], x[..., 1]))

    def rows(x):
        r = math.hypot(*x)
        turned = np.array([-x[1], x[0]]) / r
        return x, r, np.array(x) / r, np.outer(turned, turned) / r

    points = [*map(rows, [(3, -4), (-5, 12), (0, -2)]), ((0, 0), 0, (0, 0), nothing[:2, :2])]
    for scale in (1.0, *sizes(dtype)):
        x, (value, slopes, curvatures) = table(points, scale, dtype)
        check(f, [x], value, [slopes], [[curvatures]], cancels=True, modes=SECOND[:1])
    for x in (complex(inf, 1), complex(0, -inf), complex(inf, -inf)):
        assert norms.absolute(jnp.asarray(x)) == inf
    assert jnp.isnan(norms.absolute(jnp.asarray(complex(nan, 1))))


def careful(monkeypatch):
    """Norms as devices without a shortcut compute them."""
    monkeypatch.setattr(norms.xla, "shortcut", lambda attempt, careful, elsewhere: elsewhere())


@pytest.mark.parametrize("test", ["distance", "cosine"])
def test_derivatives_of_norms_elsewhere(monkeypatch, dtype, test):
    careful(monkeypatch)
    test_distance(2, dtype) if test == "distance" else test_cosine(dtype)


def test_norms_of_every_size(monkeypatch, dtype):
    careful(monkeypatch)
    info = jnp.finfo(dtype)
    exponents = np.arange(info.minexp + 4, info.maxexp - 3, info.maxexp // 32)
    sizes = (2.0 ** exponents.astype(np.float64)).astype(dtype)[:, None]
    x, y = (sizes * np.asarray(v, dtype) for v in ([[3, 4]], [[4, 3]]))
    tolerance = 8 * float(info.eps)

    @jax.jit
    def length(x):
        def of(x):
            return norms.distance(x, jnp.zeros_like(x), jnp.zeros((), dtype), 2, (1,))[:, 0]

        value, pull = jax.vjp(of, x)
        return value, *pull(jnp.ones_like(value))

    value, slope = length(x)
    np.testing.assert_allclose(value, 5 * sizes[:, 0], rtol=tolerance)
    np.testing.assert_allclose(slope, np.broadcast_to(x[:1] / value[0], x.shape), rtol=tolerance)

    @jax.jit
    def cosine(x, y):
        def of(x, y):
            return norms.cosine(x, y, jnp.zeros((), dtype), (1,))[:, 0]

        value, pull = jax.vjp(of, x, y)
        return value, *pull(jnp.ones_like(value))

    # Every size of the one beside every size of the other.
    i, j = np.indices((len(exponents),) * 2).reshape(2, -1)
    value, to_x, to_y = cosine(x[i], y[j])
    np.testing.assert_allclose(value, 0.96, rtol=tolerance)
    # (u_y - 0.96 u_x) / |x|, in the unit of 1 / |x|, which is not always a number of this dtype.
    for slope, size, turned in ((to_x, sizes[i], [[1, -0.75]]), (to_y, sizes[j], [[-0.75, 1]])):
        sane = (size > 4 / info.max) & (size < 1 / (64 * info.tiny))
        found = np.where(sane, np.asarray(slope) * size, 0)
        wanted = np.where(sane, np.array(turned) * 0.28 * 0.8 / 5, 0)
        np.testing.assert_allclose(found, wanted, rtol=8 * tolerance, atol=8 * tolerance)


def test_a_norm_of_entries_of_every_size(monkeypatch):
    """The largest entry counts, beside any others and wherever it stands."""
    careful(monkeypatch)
    zero = jnp.zeros(())
    length = jax.jit(lambda x: norms.distance(x, zero, zero, 2, (1,))[:, 0])
    for largest in (1e-30, 1e-25, 1e-10, 1.0, 1e10, 1e20, 1e37):
        row = (largest * 10.0 ** -np.arange(0, 38, 2)).astype(np.float32)
        x = np.stack([np.roll(row, n) for n in range(19)])
        np.testing.assert_allclose(length(x), np.linalg.norm(x.astype(float), axis=1), rtol=1e-6)


def maxima(f, *args, platform):
    program = jax.jit(f).trace(*args).lower(lowering_platforms=(platform,)).as_text()
    assert "applies stablehlo.add across" in program
    return program.count("applies stablehlo.maximum across")


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_vectors_are_not_read_for_a_scale(platform):
    """Neither in the value nor in the gradient, where a branch costs; the control has a scale."""
    x, zero = jnp.ones((4, 3)), jnp.zeros(())

    def distance(p):
        return jax.value_and_grad(lambda x, y: norms.distance(x, y, zero, p, (1,)).sum(), (0, 1))

    cosine = jax.value_and_grad(lambda x, y: norms.cosine(x, y, zero, (1,)).sum(), (0, 1))
    assert maxima(cosine, x, x, platform=platform) == 0
    assert maxima(distance(2), x, x, platform=platform) == 0
    assert maxima(distance(3), x, x, platform=platform) > 0


def test_cosines_need_few_sums():
    """XLA for a GPU takes at most 8 of one reading."""
    x, zero = jnp.ones((4, 3)), jnp.zeros(())
    f = jax.jit(lambda x, y: norms.cosine(x, y, zero, (1,)))
    program = f.trace(x, x).lower(lowering_platforms=("cuda",)).as_text()
    assert 0 < program.count("stablehlo.reduce(") <= 8
