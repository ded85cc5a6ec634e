"""The transducer over the usual joiner: `rnnt_loss` of its logits, which are never held whole."""

import functools
from typing import Any

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss

T, U, C, D = 5, 3, 4, 3


def joined(dtype: Any = np.float64) -> Any:
    """Encodings, predictions, kernel and bias, and the other arguments; padding is NaN."""
    rng = np.random.default_rng(0)
    frames, present = np.array([[5], [3], [4]]), np.array([[3], [2], [0]])
    labels = rng.integers(1, C, (3, U)).astype(np.int32)
    paddings, missing = np.arange(T) >= frames, np.arange(U) >= present
    floats = [rng.normal(size=s).astype(dtype) for s in ((3, T, D), (3, U + 1, D), (C, D), (C,))]
    floats[0][paddings] = np.nan
    floats[1][:, 1:][missing] = np.nan
    return [jnp.asarray(x) for x in floats], (paddings, labels, missing)


def whole(*args: Any, **options: Any):
    encodings, predictions, kernel, bias, rest = args
    sums = jnp.tanh(encodings[:, :, None] + predictions[:, None])
    return jaxloss.rnnt_loss(sums @ kernel.T + bias[None, None, None], *rest, **options)


def in_blocks(*args: Any, **options: Any):
    *floats, bias, rest = args
    return jaxloss.rnnt_loss_of_sum(*floats, *rest, bias=bias, **options)


def derivatives(f, rest, **options):
    """Value, gradients, forward derivative and second derivatives in both modes."""

    @jax.jit
    def run(*floats):
        def losses(*floats):
            return f(*floats, rest, **options)

        def gradient(*floats):
            real = jax.grad(lambda *a: losses(*a) @ jnp.arange(1.0, 4.0), (0, 1, 2, 3))(*floats)
            return [
                jnp.where(jnp.isnan(x), 0, slope) for x, slope in zip(floats, real, strict=True)
            ]

        along = tuple(jnp.cos(jnp.arange(x.size).reshape(x.shape)) for x in floats)
        slopes, bent = jax.jvp(gradient, floats, along)
        back = jax.grad(lambda *a: sum(jnp.sum(x**2) for x in gradient(*a)), (0, 1, 2, 3))(*floats)
        back = [jnp.where(jnp.isnan(x), 0, y) for x, y in zip(floats, back, strict=True)]
        return losses(*floats), slopes, jax.jvp(losses, floats, along)[1], bent, back

    return run


def test_it_is_the_loss_of_the_logits(x64):
    floats, rest = joined()
    options = {"fastemit": 0.25}
    found = derivatives(in_blocks, rest, chunk_size=2, **options)(*floats)
    real = [jnp.nan_to_num(x) for x in floats]
    wanted = derivatives(whole, rest, **options)(*real)
    for mine, reference in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(mine, reference, rtol=1e-10, atol=1e-12)


def test_padding_has_no_gradient_and_a_bad_label_is_nan_in_its_row():
    floats, (paddings, labels, missing) = joined(np.float32)

    @jax.jit
    def gradient(labels):
        def total(*floats: Any):
            return in_blocks(*floats, (paddings, labels, missing), chunk_size=3).sum()

        return jax.grad(total, (0, 1, 2, 3))(*floats)

    slopes = gradient(labels)
    assert all(np.all(np.isfinite(x)) for x in slopes)
    assert not np.any(slopes[0][paddings])
    assert not np.any(slopes[1][:, 1:][missing])
    wrong = np.where(np.arange(3)[:, None] == 1, C, labels)
    losses = in_blocks(*floats, (paddings, wrong, missing))
    assert np.isnan(losses).tolist() == [0, 1, 0]
    bad = gradient(wrong)
    for mine, slope in zip(bad[:2], slopes[:2], strict=True):
        assert np.isnan(mine[1]).any()
        np.testing.assert_allclose(mine[::2], slope[::2], rtol=1e-5, atol=1e-7)
    where = np.array([True, False, True])
    spared = in_blocks(*floats, (paddings, wrong, missing), where=where)
    np.testing.assert_allclose(spared, np.where(where, losses, 0), rtol=1e-6)


def test_leading_dimensions():
    floats, rest = joined(np.float32)
    floats = [jnp.nan_to_num(x) for x in floats]
    many = in_blocks(*floats, rest)
    pairs = [jnp.stack([x, x]) for x in (*floats[:2], *rest)]
    stacked = in_blocks(*pairs[:2], *floats[2:], pairs[2:])
    np.testing.assert_allclose(stacked, np.stack([many, many]), rtol=1e-6)
    one = in_blocks(floats[0][0], floats[1][0], *floats[2:], [x[0] for x in rest])
    np.testing.assert_allclose(one, many[0], rtol=1e-6)


@pytest.mark.parametrize("half", [jnp.bfloat16, jnp.float16], ids=lambda h: h.__name__)
def test_halves(half):
    floats, rest = joined(np.float32)
    floats = [jnp.nan_to_num(x).astype(half) for x in floats]

    def both(f, **options):
        def total(*floats):
            return f(*floats, rest, **options).sum()

        return jax.jit(jax.value_and_grad(total, (0, 1, 2, 3)))

    run = both(in_blocks, chunk_size=2)
    value, slopes = run(*floats)
    assert value.dtype == jnp.float32
    exact, gradients = both(whole)(*(x.astype(jnp.float32) for x in floats))
    bound = {jnp.bfloat16: 4e-3, jnp.float16: 5e-4}[half]
    np.testing.assert_allclose(value, exact, rtol=bound)  # tanh is rounded before its product.
    for mine, wanted in zip(slopes, gradients, strict=True):
        assert mine.dtype == half
        error = np.linalg.norm(np.asarray(mine, np.float32) - wanted)
        assert error < 2 * bound * np.linalg.norm(wanted)
    # Three products of halves, one of which the backward pass repeats; with the highest precision
    # the gradient of the logits stays in float32.
    name = {jnp.bfloat16: "bf16", jnp.float16: "f16"}[half]
    assert set(hlo.products(run, *floats)) == {(name, name, "f32")}
    exactly = both(in_blocks, precision="highest")
    assert len(set(hlo.products(exactly, *floats))) > 1


def test_the_logits_are_never_held_whole():
    examples, frames, size, classes, features = 2, 64, 15, 256, 16
    shapes = (examples, frames, features), (examples, size + 1, features), (classes, features)
    floats = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (*shapes, (classes,))]
    rest = (
        jnp.zeros((examples, frames)),
        jnp.ones((examples, size), int),
        jnp.zeros((examples, size)),
    )

    def temporaries(f, **options):
        gradient = jax.value_and_grad(lambda *a: f(*a, rest, **options).sum(), (0, 1, 2, 3))
        return hlo.temporaries(hlo.compiled(gradient, *floats))

    logits = 4 * examples * frames * (size + 1) * classes
    assert temporaries(in_blocks, chunk_size=4) < 0.4 * logits
    assert temporaries(whole) > logits  # The control.


@pytest.mark.parametrize("spec", [P("data"), P("data", "seq")], ids=str)
def test_encodings_over_explicit_axes_spread_what_every_device_holds(spec):
    lead = (4,) if len(spec) == 1 else (4, 2)
    (*floats, kernel, bias), rest = joined(np.float32)
    floats, rest = jax.tree.map(
        lambda x: np.resize(np.asarray(x), (*lead, *x.shape[1:])), (floats, rest)
    )

    @jax.jit
    def derive(encodings, predictions):
        def total(*x):
            losses = in_blocks(*x, kernel, bias, rest)
            return losses.sum(), losses

        return jax.value_and_grad(total, (0, 1), has_aux=True)(encodings, predictions)

    (_, wanted), slopes = derive(*floats)
    mesh = jax.make_mesh((2, 2), ("data", "seq"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        spread = [jax.device_put(x, NamedSharding(mesh, spec)) for x in floats]
        (_, found), gradients = derive(*spread)
    assert tuple(jax.typeof(found).sharding.spec) == tuple(spec)
    for x, y in zip((found, *gradients), (wanted, *slopes), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


E, R, K = jnp.zeros((2, 4, 3)), jnp.zeros((2, 3, 3)), jnp.zeros((5, 3))
FRAMES, ONES, NONE = jnp.zeros((2, 4)), jnp.ones((2, 2), jnp.int32), jnp.zeros((2, 2))
REST = FRAMES, ONES, NONE
WRONG = [
    (lambda f: f(E, R, K[0], *REST), r"`kernel` must have shape \(C, D\), got \(3,\)"),
    (lambda f: f(E[..., :2], R, K, *REST), r"`encodings` must have shape \(\.\.\., T, 3\)"),
    (lambda f: f(E, R[0], K, *REST), r"`predictions` must have shape \(2, U \+ 1, 3\)"),
    (lambda f: f(E, R[:, 1:], K, *REST), r"`labels` must have shape \(2, 1\), one fewer than rows"),
    (lambda f: f(E, R, K, *REST, bias=K[0]), r"`bias` must have shape \(5,\), got \(3,\)"),
    (lambda f: f(E, R, K, *REST, chunk_size=0), "`chunk_size` must be an integer of 1 or more"),
    (lambda f: f(E, R, K, *REST, blank_id=5), r"`blank_id` must be a symbol in \[0, 5\), got 5"),
]


@pytest.mark.parametrize(("call", "words"), WRONG, ids=[words for _, words in WRONG])
def test_wrong_calls(call, words):
    with pytest.raises(ValueError, match=f"^rnnt_loss_of_sum: {words}"):
        call(jaxloss.rnnt_loss_of_sum)


@functools.cache
def gradients_of_halves(moving):
    floats, rest = joined(np.float32)
    floats = [jnp.nan_to_num(x).astype(jnp.bfloat16) for x in floats]

    @jax.jit
    def run(*floats: Any):
        return jax.grad(lambda *x: in_blocks(*x, rest, chunk_size=2).sum(), moving)(*floats)

    return [np.asarray(x, np.float32) for x in run(*floats)]


@pytest.mark.parametrize("moving", [(2,), (0,), (0, 1), (2, 3)], ids=str)
def test_gradients_of_some_halves(moving):
    together = gradients_of_halves((0, 1, 2, 3))
    for mine, i in zip(gradients_of_halves(moving), moving, strict=True):
        np.testing.assert_array_equal(mine, together[i])
