"""The divergence of a teacher's softmax from a student's, and its derivatives."""

# pyright: reportArgumentType=false, reportCallIssue=false
# Options in dictionaries lose their types.

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from derivatives import check_differences

from jaxloss.core.classes.axes import ClassAxes
from jaxloss.core.softmax_divergence import divergence_of

INF = math.inf
RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(2, 4, 5)).astype(np.float32) * 3
BETAS = pytest.mark.parametrize("beta", [0.0, 1e-6, 0.3, 1.0])


@functools.partial(jax.jit, static_argnames="beta")
def divergence(logits, teacher, beta, where=None, temperature=None, softcap=None):
    classes = ClassAxes((logits.ndim - 1,))
    return divergence_of(logits, teacher, where, temperature, beta, softcap, classes)


def kl(p, q):
    return sum(
        0 if a == 0 else INF if b == 0 else a * math.log(a / b) for a, b in zip(p, q, strict=True)
    )


def wanted(student, teacher, beta, temperature=1.0, softcap=None):
    """From the definition, one example at a time."""
    found = []
    for pair in zip(student.tolist(), teacher.tolist(), strict=True):
        both = []
        for x in pair:
            x = x if softcap is None else [softcap * math.tanh(a / softcap) for a in x]
            exps = [math.exp((a - max(x)) / temperature) for a in x]
            both.append([e / sum(exps) for e in exps])
        q, p = both
        m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
        found.append({0: kl(p, q), 1: kl(q, p)}.get(beta, beta * kl(p, m) + (1 - beta) * kl(q, m)))
    return np.array(found)


@BETAS
def test_values(beta, dtype):
    x, y = (jnp.asarray(a, dtype) for a in (STUDENT, TEACHER))
    eps = float(jnp.finfo(dtype).eps)
    numbers = {"temperature": 1.3, "softcap": 2.5}
    for more in ({}, numbers):
        got = divergence(x, y, beta, **{k: jnp.asarray(v, dtype) for k, v in more.items()})
        assert got.dtype == dtype
        exact = wanted(STUDENT.astype(float), TEACHER.astype(float), beta, **more)
        # The definition itself cancels, in float64.
        np.testing.assert_allclose(got, exact, 16 * eps, 1e-15)


# The same code is behind 0 and 1, and behind all between: each is once with a softcap.
@pytest.mark.parametrize(("beta", "softcap"), [(0.0, 2.5), (1e-6, None), (0.3, 2.5), (1.0, None)])
def test_derivatives(beta, softcap, x64):
    rows = np.arange(4)[:, None] < 1
    holes = [
        np.where(rows & (np.arange(5) == 1), -INF, a.astype(float)) for a in (STUDENT, TEACHER)
    ]
    finite = np.isfinite(holes[0])

    def f(x, y, temperature, softcap):
        x, y = (jnp.where(finite, a, -INF) for a in (x, y))
        return jnp.sin(divergence(x, y, beta, temperature=temperature, softcap=softcap))

    check_differences(f, (*(np.where(finite, a, 0) for a in holes), 1.3, softcap), 1e-5)


@BETAS
def test_both_nearly_agree(beta):
    """Each value is one of rounded logits, of which the definition in float64 is exact enough."""
    teacher = np.array([[17.5, 0.0], [0.5, 0.25], [3.0, 1.0]], np.float32)
    student = teacher + np.array([[0.5, 0.0], [2**-7, 0.0], [0.0, 2**-9]], np.float32)
    slope = 1 if beta in (0, 1) else beta * (1 - beta)
    slopes = jax.jit(jax.grad(lambda *a: jnp.sum(divergence(*a, beta)), (0, 1)))
    for x, y in ((student, teacher), (teacher, teacher + 1)):
        got = divergence(jnp.asarray(x), jnp.asarray(y), beta)
        assert (got >= 0).all()
        d = (x - y)[:, 0] - (x - y)[:, 1]
        p = 1 / (1 + np.exp((y[:, 1] - y[:, 0]).astype(float)))
        # To second order β (1 - β) / 2 Σ p (log q - log p)², or half of Σ at either end.
        second = slope * p * (1 - p) * d.astype(float) ** 2 / 2
        np.testing.assert_allclose(got, second, 0.3 if d.any() else 0, 0)
    np.testing.assert_array_equal(slopes(teacher, teacher + 1), np.zeros((2, 3, 2)))


def test_classes_that_one_has():
    student = np.array([[1.0, 2.0, -INF, 0.0]], np.float32)
    teacher = np.array([[1.0, 2.0, 3.0, 0.0]], np.float32)
    q, p = jax.jit(jax.nn.softmax)(np.stack([student, teacher]))
    assert divergence(student, teacher, 0.0) == INF
    for d in (jax.grad, jax.jacfwd):
        slope = jax.jit(d(lambda x: divergence(x, teacher, 0.0)[0]))(student)
        np.testing.assert_allclose(slope, q - p, 1e-6)
    mixed = wanted(np.asarray(student, float), np.asarray(teacher, float), 0.4)
    for x, y, beta in ((student, teacher, 0.4), (teacher, student, 0.6)):
        np.testing.assert_allclose(divergence(x, y, beta), mixed, 1e-6)
        slopes = jax.jit(jax.grad(lambda *a, b=beta: divergence(*a, b)[0], (0, 1)))(x, y)
        assert np.isfinite(slopes).all()
    np.testing.assert_allclose(
        divergence(student, teacher, 1.0), kl(*np.asarray([q[0], p[0]])), 1e-6
    )
    # Absent in both.
    half, two = np.float32(0.5), np.float32(2)
    both = [np.where(np.isfinite(student), x, -INF) for x in (student + half, two * teacher)]
    few = [np.delete(x, 2, 1) for x in both]
    np.testing.assert_allclose(divergence(*both, 0.0), divergence(*few, 0.0), 1e-6)


@BETAS
def test_what_takes_no_part_may_hold_anything(beta):
    where = np.array([[True], [False], [True], [True]])
    numbers = {"temperature": np.float32(0.7), "softcap": np.float32(4)}

    @jax.jit
    def everything(x, y):
        def total(x, y, numbers):
            return jnp.sum(jnp.sin(divergence(x, y, beta, where, **numbers)))

        slopes = jax.grad(total, (0, 1, 2))
        dots = jax.tree.map(jnp.ones_like, (x, y, numbers))
        return divergence(x, y, beta, where), jax.jvp(slopes, (x, y, numbers), dots)

    got = everything(*(np.where(where, x, np.float32(np.nan)) for x in (STUDENT, TEACHER)))
    exact = everything(STUDENT, TEACHER)
    assert got[0][1] == 0
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True):
        np.testing.assert_array_equal(x, y)
        assert np.isfinite(x).all()
