"""Values against the formulas in float64, in both precisions and through both doors."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import CLASSES_MASKED, LOSSES, arrays, as_input
from hlo import optimised

import jaxloss
from jaxloss import functional as F

ULP = 2.0**-23


def expected(loss, args, **more):
    options = {
        name: np.asarray(v) if hasattr(v, "shape") else v
        for name, v in arrays(loss.options).items()
    }
    return getattr(oracle, loss.core)(*map(np.asarray, args), **options, **more)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_float64(loss, x64):
    args = loss.inputs(np.float64, seed=1)
    wanted = expected(loss, args)
    doors = jax.jit(lambda *args: {door: call(*args) for door, call in loss.doors().items()})
    for door, value in doors(*args).items():
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(value, wanted, rtol=1e-12, atol=1e-14, err_msg=door)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_float32(loss):
    """The core as optimised code, which could break a compensated sum or a mantissa."""
    args = loss.inputs(np.float32, seed=2)
    exact = expected(loss, [np.asarray(a, np.float64) if a.dtype.kind == "f" else a for a in args])
    scale = np.abs(exact).max()
    for door, call in (loss.doors() | {"core": optimised(loss.losses, *args)}).items():
        value = call(*args)
        assert value.dtype == jnp.float32
        assert value.shape == exact.shape
        np.testing.assert_allclose(value, exact, rtol=4 * ULP, atol=4 * ULP * scale, err_msg=door)


UNWEIGHTED = [
    loss
    for loss in CLASSES_MASKED
    if not any(isinstance(value, np.ndarray) for value in loss.options.values())
]


@hypothesis.settings(max_examples=50, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    loss=st.sampled_from(UNWEIGHTED),
    examples=st.integers(0, 4),
    classes=st.integers(1, 4),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16]),
    kept=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 99),
)
def test_any_shape_dtype_and_mask(loss, examples, classes, dtype, kept, seed):
    rng = np.random.default_rng(seed)
    drawn = [a[:examples, :classes] if a.ndim == 2 else a[:examples] for a in loss.sample(rng)]
    args = [as_input(a % classes if a.dtype.kind == "i" else a, dtype) for a in drawn]
    where = rng.uniform(size=(examples, classes)) < kept
    exact = [
        np.asarray(a, np.float64 if jnp.issubdtype(a.dtype, jnp.floating) else None) for a in args
    ]
    wanted = expected(loss, exact, where=where)
    value = loss.losses(*args, where=jnp.asarray(where))
    assert value.shape == (examples,)
    np.testing.assert_allclose(value, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("shape1", "shape2", "axis"),
    [
        ((1, 2, 3), (2, 1, 3), -2),
        ((1, 2, 3), (2, 1, 3), 0),
        ((3,), (2, 3), 1),
        ((2, 3), (3,), -1),
        ((4, 1), (1, 5), 0),
        ((), (3,), 0),
        ((), (), 0),
        ((), (), -1),
    ],
)
def test_cosine_broadcasts_both(shape1, shape2, axis):
    rng = np.random.default_rng(0)
    x1, x2 = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in (shape1, shape2))
    common = np.broadcast_arrays(*np.atleast_1d(x1, x2))
    wanted = oracle.cosine_similarity(*(np.moveaxis(x, axis, -1) for x in common))
    for value in (
        jaxloss.cosine_similarity(x1, x2, axis=axis),
        F.cosine_similarity(x1, x2, dim=axis),
    ):
        assert value.shape == wanted.shape
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)


def test_a_single_score_is_that_of_the_only_class():
    score = jnp.float32(0.3)
    assert F.multi_margin_loss(score, jnp.int32(0)) == 0
    assert np.isnan(F.multi_margin_loss(score, jnp.int32(1)))
    for label in (0, -1):
        assert F.multilabel_margin_loss(score, jnp.int32(label), reduction="none").shape == ()
        assert F.multilabel_margin_loss(score, jnp.int32(label)) == 0
