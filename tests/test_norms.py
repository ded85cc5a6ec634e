"""Distances, cosines and absolute values alone: zeros, ties, sizes, infinities, in every mode."""

import decimal
import functools
import math
from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from derivatives import check
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


def cosine(x, eps):
    """The cosine of the two halves of a vector of Decimals, each taken to be eps long at least."""
    x1, x2 = x[: len(x) // 2], x[len(x) // 2 :]
    inner = sum(a * b for a, b in zip(x1, x2, strict=True))
    return inner / (max(norm(x1, 2), Decimal(eps)) * max(norm(x2, 2), Decimal(eps)))


@functools.cache
def differences(f, x, option):
    """f(x, option), its gradient and its Hessian at numbers that are not 0, with 30 digits."""
    with decimal.localcontext(prec=90):
        numbers = [*map(Decimal, x)]
        steps = [abs(t) * Decimal("1e-15") for t in numbers]

        def moved(*moves):
            there = [*numbers]
            for place, sign in moves:
                there[place] += sign * steps[place]
            return f(there, option)

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


def table(rows, scales, dtype):
    """Rows (vector, value, slopes, curvatures) times the scales of the vectors, as columns."""
    scaled = [(s * np.asarray(x), s * v, d, dd / s) for s in scales for x, v, d, dd in rows]
    x, *wanted = (np.array(column) for column in zip(*scaled, strict=True))
    return jnp.asarray(x, dtype), wanted


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
            x, (value, slopes, curvatures) = table(rows, [scale], dtype)
            if p == 0:
                value = value / scale
            eps = scale * jnp.ones((len(x), 1), dtype)
            packed = jnp.concatenate([x + 6 * eps, 7 * eps + 0 * x, eps], -1)
            curvatures = signs.T @ curvatures @ signs
            terms = abs(p - 1) / np.where(value == 0, inf, value) if math.isfinite(p) else 0.0
            check(f, [packed], value, [slopes @ signs], [[curvatures]], terms=terms)
