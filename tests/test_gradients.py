"""Derivatives: against finite differences, in all modes and orders, at kinks, ties and zero."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BY_NAME, LOSSES, ROWWISE, gradients, replaced

import jaxloss
from jaxloss import functional as F

ULP = 2.0**-23


def numerical_jacobian(f, x, step=1e-4):
    """Central differences with one Richardson step, of a function of one array."""
    directions = step * jnp.eye(x.size).reshape(x.size, *x.shape)
    shifts = jnp.concatenate([k * directions for k in (-2, -1, 1, 2)])
    values = jnp.split(jax.lax.map(f, x[None] + shifts), 4)
    slopes = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
    return jnp.moveaxis(slopes, 0, -1).reshape((*slopes.shape[1:], *x.shape))


def derivatives(loss):
    """Those of the sum in every mode, and differences to compare them with, as one program.

    The directions are one for each float.
    """

    @jax.jit
    def total(*args):
        return loss.losses(*args).sum()

    slopes = jax.jit(jax.grad(total, loss.floats))

    def scanned(*args):
        rows = tuple(a[:, None] for a in args)  # One example a step.
        return jax.lax.scan(lambda sum_, row: (sum_ + loss.losses(*row).sum(), None), 0.0, rows)[0]

    def of(f, args, positions):
        """f as a function of these arguments."""

        def alone(*floats):
            return f(*replaced(args, positions, floats))

        return alone

    @jax.jit
    def run(args, directions):
        floats = tuple(args[p] for p in loss.floats)
        first = {
            "reverse": slopes(*args),
            "differences": [numerical_jacobian(of(total, args, [p]), args[p]) for p in loss.floats],
            "forward": jax.jvp(of(total, args, loss.floats), floats, directions)[1],
        }
        if loss not in ROWWISE:
            return first, None
        x, direction, position = floats[0], directions[0], loss.floats[0]
        slope = of(lambda *args: slopes(*args)[0], args, [position])
        # Inside scan some versions of JAX lose custom rules.
        slope_inside = of(jax.grad(scanned, position), args, [position])
        # What is linear is transposed for reverse mode, so that one of it serves both modes.
        _, push = jax.linearize(slope, x)
        basis = jnp.eye(x.size).reshape(x.size, *x.shape)
        inside, along_inside = jax.jvp(slope_inside, (x,), (direction,))
        second = {
            "forward over reverse": jax.vmap(push, out_axes=-1)(basis).reshape(x.shape * 2),
            "reverse over reverse": jax.linear_transpose(push, x)(direction)[0],
            "inside scan": (inside, along_inside),
            "differences": numerical_jacobian(slope, x),
        }
        return first, second

    return run


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_derivatives(loss):
    with jax.enable_x64(True):
        args, directions = loss.inputs(np.float64, seed=3), loss.inputs(np.float64, seed=6)
        directions = tuple(directions[p] for p in loss.floats)
        first, second = jax.device_get(derivatives(loss)(args, directions))
    for got, wanted in zip(first["reverse"], first["differences"], strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-8, atol=1e-8)
    along = sum(map(np.vdot, first["reverse"], directions))
    np.testing.assert_allclose(first["forward"], along, rtol=1e-12, err_msg="forward mode")
    if second is not None:
        check_second_order(second, first["reverse"][0], np.asarray(directions[0]))
    for got, wanted in zip(gradients(loss)(loss.inputs(seed=3)), first["reverse"], strict=True):
        assert got.dtype == jnp.float32
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(got, wanted, 4 * ULP, 4 * ULP * scale, err_msg="in float32")


def check_second_order(second, slope, direction):
    """The derivatives of a slope, of which some are only known along the direction."""
    wanted = second["differences"]
    np.testing.assert_allclose(second["forward over reverse"], wanted, rtol=1e-7, atol=1e-7)
    slope_inside, along_inside = second["inside scan"]
    wanted = np.tensordot(wanted, direction, direction.ndim)
    for got in (second["reverse over reverse"], along_inside):
        np.testing.assert_allclose(got, wanted, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(slope_inside, slope, rtol=1e-12, atol=1e-14)


# The gradient with respect to the first argument, at the point where formulas part.
KINKS = [
    ("l1_loss", ([0.0], [0.0]), {}, [0.0]),
    ("l1_loss", ([-0.0], [0.0]), {}, [0.0]),
    ("smooth_l1_loss", ([1.0, -1.0, 0.0], [0.0, 0.0, 0.0]), {}, [1.0, -1.0, 0.0]),
    ("smooth_l1_loss", ([0.0], [0.0]), {"beta": 0.0}, [0.0]),
    ("huber_loss", ([2.0, -2.0, 0.0], [0.0, 0.0, 0.0]), {"delta": 2.0}, [2.0, -2.0, 0.0]),
    ("binary_cross_entropy_with_logits", ([0.0, -0.0], [1.0, 0.25]), {}, [-0.5, 0.25]),
    ("soft_margin_loss", ([0.0], [1.0]), {}, [-0.5]),
    ("multilabel_soft_margin_loss", ([0.0, 0.0], [1.0, 0.0]), {}, [-0.25, 0.25]),
    ("margin_ranking_loss", ([1.0], [1.0], [1.0]), {}, [-1.0]),
    ("margin_ranking_loss", ([1.0], [0.5], [1.0]), {"margin": 0.5}, [-1.0]),
    ("hinge_embedding_loss", ([1.0], [-1.0]), {}, [-1.0]),
    ("cosine_embedding_loss", ([[1.0, 0.0]], [[0.0, 2.0]], [-1.0]), {}, [[0.0, 1.0]]),
    ("triplet_margin_loss", ([[0.0]], [[1.0]], [[2.0]]), {"eps": 0.0}, [[0.0]]),
    ("triplet_margin_loss", ([[0.0]], [[1.0]], [[-2.0]]), {"eps": 0.0}, [[-2.0]]),
    ("multi_margin_loss", ([[1.0, 0.0]], [0]), {}, [[0.0, 0.0]]),
    ("multilabel_margin_loss", ([[1.0, 0.0]], [[0, -1]]), {}, [[0.0, 0.0]]),
    ("binary_cross_entropy", ([0.0, 1.0], [1.0, 0.0]), {}, [-1e12, 1e12]),
    ("binary_cross_entropy", ([0.0, 1.0], [0.0, 1.0]), {}, [1.0, -1.0]),
    ("gaussian_nll_loss", ([1.0], [0.0], [0.0]), {"eps": 0.5}, [2.0]),
    ("poisson_nll_loss", ([0.0], [0.0]), {"log_input": False, "eps": 0.0}, [1.0]),
]


@pytest.mark.parametrize(
    ("name", "args", "options", "wanted"), KINKS, ids=[f"{k[0]}-{i}" for i, k in enumerate(KINKS)]
)
def test_kink(name, args, options, wanted):
    args = [
        jnp.asarray(a, jnp.int32 if isinstance(np.ravel(a)[0], np.integer) else jnp.float32)
        for a in args
    ]
    got = jax.grad(lambda x: getattr(F, name)(x, *args[1:], reduction="sum", **options))(args[0])
    np.testing.assert_allclose(got, np.asarray(wanted, np.float32), rtol=1e-6)


# The same of losses that torch has not, in the core.
CORE_KINKS = [
    ("log_cosh", ([0.0, -0.0], [0.0, 0.0]), {}, [0.0, 0.0]),
    ("hinge_loss", ([1.0, -1.0], [1.0, -1.0]), {}, [-1.0, 1.0]),
    ("perceptron_loss", ([0.0, 0.0], [1.0, -1.0]), {}, [-1.0, 1.0]),
    ("multiclass_hinge_loss", ([[1.0, 0.0, 0.0]], [0]), {}, [[-1.0, 1.0, 0.0]]),
    ("multiclass_hinge_loss", ([[1.0]], [0]), {}, [[0.0]]),
    ("multiclass_perceptron_loss", ([[0.0, 0.0, 0.0]], [1]), {}, [[1.0, -1.0, 0.0]]),
    ("sparsemax_loss", ([1.0, -1.0, 0.0], [1, 1, 0]), {}, [0.0, -1.0, 0.5]),
    ("multiclass_sparsemax_loss", ([[1.0, 0.0]], [0]), {}, [[0.0, 0.0]]),
    ("multiclass_sparsemax_loss", ([[0.0, 0.0]], [0]), {}, [[-0.5, 0.5]]),
    ("sigmoid_focal_loss", ([0.0, -0.0], [1.0, 0.0]), {"gamma": 0.0}, [-0.5, 0.5]),
    ("sigmoid_focal_loss", ([100.0, -100.0], [1.0, 0.0]), {"gamma": 0.5}, [0.0, 0.0]),
    (
        "softmax_focal_loss_with_integer_labels",
        ([[0.0, -200.0]], [0]),
        {"gamma": 0.5},
        [[0.0, 0.0]],
    ),
    ("generalized_kl_divergence", ([0.0], [0.0]), {}, [1.0]),
    ("cosine_distance", ([[0.0, 0.0]], [[0.0, 2.0]]), {}, [[0.0, 0.0]]),
    (
        "binary_dice_loss",
        ([[0.0, 0.0]], [[0.0, 0.0]]),
        {"smooth": 0.0, "apply_sigmoid": False},
        [[0.0, 0.0]],
    ),
]


@pytest.mark.parametrize(
    ("name", "args", "options", "wanted"),
    CORE_KINKS,
    ids=[f"{k[0]}-{i}" for i, k in enumerate(CORE_KINKS)],
)
def test_kink_in_the_core(name, args, options, wanted):
    args = [
        jnp.asarray(a, jnp.int32 if isinstance(np.ravel(a)[0], np.integer) else jnp.float32)
        for a in args
    ]
    got = jax.grad(lambda x: getattr(jaxloss, name)(x, *args[1:], **options).sum())(args[0])
    np.testing.assert_allclose(got, np.asarray(wanted, np.float32), rtol=1e-6)


def test_variance_below_eps_keeps_its_gradient():
    def loss(var):
        return F.gaussian_nll_loss(jnp.zeros(1), jnp.ones(1), var, eps=0.5)

    # ½ (1/v - 1/v²) at v = eps.
    np.testing.assert_allclose(jax.grad(loss)(jnp.full(1, 0.1)), [-1.0], rtol=1e-6)
    np.testing.assert_allclose(jax.hessian(loss)(jnp.full(1, 0.1)), [[6.0]], rtol=1e-6)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, float("inf"), -1.0, float("-inf")])
def test_norm_of_zero_has_gradient_zero(p):
    def distance(x):
        return jaxloss.pairwise_distance(x, jnp.zeros((2, 3)), p=p, eps=0.0).sum()

    x = jnp.array([[0.0, 0.0, 0.0], [1.0, -2.0, 0.5]])
    for slopes in jax.jit(lambda x: (jax.grad(distance)(x), jax.hessian(distance)(x)))(x):
        assert not np.any(slopes[0])
        chex.assert_tree_all_finite(slopes)


@pytest.mark.parametrize("p", [-1.0, -2.5])
def test_norm_of_negative_degree_is_zero_beside_a_zero(p):
    x = jnp.array([3.0, 0.0, -4.0])
    value, gradient = jax.value_and_grad(
        lambda x: jaxloss.pairwise_distance(x, jnp.zeros(3), p=p, eps=0.0)
    )(x)
    assert value == 0
    assert not np.any(gradient)


def test_norm_of_a_tiny_degree():
    def distance(x):
        return jaxloss.pairwise_distance(x, jnp.zeros(3), p=1e-3, eps=0.0)

    value, gradient = jax.value_and_grad(distance)(jnp.array([0.0, 0.0, -1e-25]))
    np.testing.assert_allclose(value, 1e-25, rtol=1e-3)
    np.testing.assert_allclose(gradient, [0.0, 0.0, -1.0], rtol=1e-3)
    assert distance(jnp.zeros(3)) == 0
    assert distance(jnp.ones(3)) == np.inf  # 3**1000


def test_norm_below_1_has_gradient_zero_along_zeros():
    def distance(x):
        return jaxloss.pairwise_distance(x, jnp.zeros(3), p=0.5, eps=0.0)

    gradient = jax.grad(distance)(jnp.array([0.0, 4.0, 1.0]))
    np.testing.assert_allclose(gradient, [0.0, 1.5, 3.0], rtol=1e-6)  # √(n / |x|), n = 9


def test_infinity_norm_shares_the_gradient_of_a_tie():
    def distance(x):
        return jaxloss.pairwise_distance(x, jnp.zeros(3), p=float("inf"), eps=0.0)

    np.testing.assert_allclose(jax.grad(distance)(jnp.array([2.0, -2.0, 1.0])), [0.5, -0.5, 0.0])


def test_cosine_of_a_zero_vector_is_0_with_gradient_0():
    x1, x2 = jnp.zeros((1, 3)), jnp.ones((1, 3))
    for cosine in (jaxloss.cosine_similarity, F.cosine_similarity):
        assert cosine(x1, x2) == 0
        for gradient in jax.grad(lambda a, b: cosine(a, b).sum(), (0, 1))(x1, x2):  # noqa: B023
            assert not np.any(gradient)


def test_complex_absolute_error(x64):
    x = jnp.array([3 + 4j, 0j, -1j])
    assert jaxloss.absolute_error(x).dtype == jnp.float64
    np.testing.assert_allclose(jaxloss.absolute_error(x), [5, 0, 1])
    gradient = jax.grad(lambda x: jaxloss.absolute_error(x).sum())(x)
    np.testing.assert_allclose(gradient, np.conj([0.6 + 0.8j, 0, -1j]))


def test_hessian_at_logit_0_is_that_of_the_sigmoid():
    hessian = jax.grad(jax.grad(lambda x: jaxloss.sigmoid_binary_cross_entropy(x, 1.0)))(0.0)
    np.testing.assert_allclose(hessian, 0.25)


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("huber", "delta", 0.7),
        ("smooth_l1", "beta", 0.7),
        ("gaussian", "eps", 0.5),
        ("hinge_embedding", "margin", 0.6),
        ("cosine_similarity", "eps", 2.0),
        ("cosine_similarity", "epsilon", 4.0),
        ("cosine_distance", "epsilon", 4.0),
        ("cosine_distance", "epsilon", 0.0),
        ("triplet", "margin", 1.3),
        ("sigmoid_focal", "gamma", 1.5),
        ("sigmoid_focal", "alpha", 0.3),
        ("softmax_focal", "gamma", 1.5),
        ("poly", "epsilon", -0.5),
        ("dice", "smooth", 0.5),
        ("dice", "alpha", 0.3),
        ("tversky", "beta", 0.6),
        ("generalized_dice", "smooth", 0.5),
        ("ntxent", "temperature", 0.4),
        ("info_nce", "temperature", 0.4),
        ("supervised_contrastive", "temperature", 0.4),
        ("sigmoid_contrastive", "scale", 1.5),
        ("sigmoid_contrastive", "bias", -0.5),
    ],
)
def test_hyper_parameters_are_differentiable(name, argument, value, x64):
    loss = BY_NAME[name]
    args = loss.inputs(np.float64, seed=9)

    def f(value):
        return getattr(jaxloss, loss.core)(*args, **{**loss.options, argument: value}).sum()

    if name.startswith("cosine"):
        lengths = np.array([np.linalg.norm(x, axis=-1) for x in args])
        assert not value or 0 < np.sum(lengths < 2) < lengths.size

    @jax.jit
    def run(value):
        return [jax.grad(f)(value), jax.jacfwd(f)(value)], numerical_jacobian(f, value)

    found, wanted = run(jnp.asarray(value))
    if name == "gaussian" or not value:
        wanted = 0.0  # The clamp is no part of the derivative; nor is there a side below 0.
    np.testing.assert_allclose(found, [wanted] * 2, rtol=1e-6, atol=1e-9)
