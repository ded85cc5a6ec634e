"""The same numbers whatever a loss is fused with: inputs that its own program computes, or knows.

XLA rounds a producer that it fuses into several consumers differently in each, and reorders the
arithmetic of constants. A train step always computes its logits, so the tests of the other files,
which pass inputs as arguments, do not see it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import BY_NAME, OUTERMOST, OUTERMOST_IDS, as_input
from hlo import optimised
from test_values import expected

import jaxloss
from jaxloss import functional as F

# Of numbers x: what goes into the program, how it makes x of that, and the derivative. The compiler
# does not know `one`: it contracts the product with the sum behind it, or does not.
FORMS = {
    "divided": (lambda x: x * 0.7, lambda x, one: x / 0.7, 1 / 0.7),
    "residual sum": (lambda x: x - 0.3, lambda x, one: x * one + 0.3 * one, 1.0),
    "affine layer": (
        lambda x: x - 0.6,
        lambda x, one: x @ (jnp.eye(x.shape[-1]) * one) + 0.6,
        1.0,
    ),
    "bfloat16 product": (
        lambda x: x,
        lambda x, one: jnp.matmul(
            x.astype(jnp.bfloat16), jnp.eye(x.shape[-1], dtype=jnp.bfloat16)
        ).astype(jnp.float32),
        1.0,
    ),
}


def inputs(loss):
    """Sample inputs that bfloat16 can represent, so that every form makes the same of them.

    They are large, since the logits of a confident model lie some way apart.
    """
    drawn = [as_input(a, jnp.float32) for a in loss.sample(np.random.default_rng(7))]
    large = loss.domain(*(a * 8 if p in loss.floats else a for p, a in enumerate(drawn)))
    return [a.astype(jnp.bfloat16) if a.dtype == jnp.float32 else a for a in large]


def in_float64(args):
    return [np.asarray(a, np.float64) if a.dtype == jnp.bfloat16 else np.asarray(a) for a in args]


def widened(args):
    return [a.astype(jnp.float32) if a.dtype == jnp.bfloat16 else a for a in args]


@functools.cache
def exact(name):
    """The losses, and the gradients of their sum."""
    loss = BY_NAME[name]
    args = in_float64(inputs(loss))

    def alone(x, position):
        return expected(loss, [*args[:position], x, *args[position + 1 :]])

    gradients = [
        oracle.gradient(functools.partial(alone, position=p), args[p], step=2.0**-12, levels=2)
        for p in loss.floats
    ]
    return expected(loss, args), gradients


@pytest.mark.parametrize(("loss", "door"), OUTERMOST, ids=OUTERMOST_IDS)
def test_computed_or_constant_inputs(loss, door):
    args = widened(inputs(loss))
    floats = [args[p] for p in loss.floats]
    call = loss.doors()[door]

    def losses_and_gradients(make, given):
        def losses(*given):
            made = dict(zip(loss.floats, map(make, given), strict=True))
            return call(*(made.get(p, a) for p, a in enumerate(args)))

        gradients = jax.grad(lambda *a: losses(*a).sum(), range(len(given)))(*given)
        return losses(*given), gradients

    given = {
        form: [jnp.asarray(before(np.asarray(x, np.float64)), jnp.float32) for x in floats]
        for form, (before, _, _) in FORMS.items()
    }

    def program(given, one):
        found = {
            form: losses_and_gradients(functools.partial(make, one=one), given[form])
            for form, (_, make, _) in FORMS.items()
        }
        return found | {"constant": losses_and_gradients(lambda x: x, floats)}

    found = optimised(program, given, jnp.float32(1))(given, jnp.float32(1))
    wanted, gradients = exact(loss.name)
    for form, (losses, slopes) in found.items():
        np.testing.assert_allclose(losses, wanted, rtol=1e-5, atol=1e-5, err_msg=form)
        factor = FORMS[form][2] if form in FORMS else 1.0
        # The gradient passes through bfloat16 on its way.
        error = 1e-2 if form.startswith("bfloat16") else 2e-5
        for got, slope in zip(slopes, gradients, strict=True):
            scale = max(1, np.abs(slope).max())
            np.testing.assert_allclose(
                got / factor, slope, rtol=error, atol=error * scale, err_msg=form
            )


ROWS = 64


def rest_of(lead):
    """log(1 + exp(-lead)), the loss of a label that leads by so much; its gradient."""
    lead = np.asarray(lead, np.float64)
    return np.log1p(np.exp(-lead)), -1 / (1 + np.exp(lead))


CONFIDENT = {
    "labels": lambda x: jaxloss.softmax_cross_entropy_with_integer_labels(x, jnp.zeros(ROWS, int)),
    "probabilities": lambda x: jaxloss.softmax_cross_entropy(
        x, jnp.stack([jnp.ones(ROWS), jnp.zeros(ROWS)], -1)
    ),
    "linear": lambda x: jaxloss.linear_softmax_cross_entropy(x, jnp.eye(2), jnp.zeros(ROWS, int)),
    "ctc": lambda x: jaxloss.ctc_loss(
        x[:, None],
        jnp.zeros((ROWS, 1)),
        jnp.zeros((ROWS, 1), int),
        jnp.zeros((ROWS, 1)),
        blank_id=1,
    ),
    "logarithms": lambda x: F.nll_loss(
        jax.nn.log_softmax(x), jnp.zeros(ROWS, int), reduction="none"
    ),
}


@pytest.mark.parametrize("name", CONFIDENT)
def test_confident_logits_of_the_program(name):
    """A few units in the last place of the logits are 100 times the loss here."""

    def logits(lead, one):
        # Rounded, or contracted with a sum, as it pleases XLA.
        return jnp.stack([lead * 0.7 + lead * one, jnp.zeros(ROWS)], -1)

    def program(lead, one):
        def losses(lead):
            return CONFIDENT[name](logits(lead, one))

        return losses(lead), jax.grad(lambda lead: losses(lead).sum())(lead)

    lead, one = jnp.linspace(6, 11, ROWS, dtype=jnp.float32), jnp.float32(1)
    losses, gradient = optimised(program, lead, one)(lead, one)
    wanted, slope = rest_of(1.7 * np.asarray(lead, np.float64))
    if name == "logarithms":  # That they cancel is not ours to mend: the control.
        assert np.abs(losses / wanted - 1).max() > 0.1
        return
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    # That of CTC is a difference of shares, 0 to rounding.
    rtol, atol = (0, 2e-7) if name == "ctc" else (1e-5, 0)
    np.testing.assert_allclose(gradient, 1.7 * slope, rtol=rtol, atol=atol)


@pytest.mark.parametrize("scale", [1e20, 1e-25])
@pytest.mark.parametrize("constant", [True, False], ids=["constant", "multiplied"])
def test_norms_of_constants(constant, scale):
    """XLA gathers the constant factors of a product, and their square is infinite or 0."""
    rng = np.random.default_rng(0)
    x1, x2 = (jnp.asarray(rng.normal(size=(4, 3)), jnp.float32) for _ in range(2))
    scale = np.float32(scale)

    def everything(x1, x2):
        x1, x2 = scale * x1, scale * x2
        functions = {
            "cosine": lambda a, b: jaxloss.cosine_similarity(a, b),
            "same": lambda a, _: jaxloss.cosine_similarity(a, a),
            **{
                f"distance {p}": lambda a, b, p=p: jaxloss.pairwise_distance(a, b, p=p, eps=0.0)
                for p in (0.5, 1.0, 2.0, 3.0, float("inf"))
            },
            "triplet": lambda a, b: jaxloss.triplet_margin_loss(
                a, b, -b, margin=2 * scale, eps=0.0
            ),
            "embedding": lambda a, b: jaxloss.cosine_embedding_loss(
                a, b, jnp.array([1, -1, 1, -1])
            ),
        }
        return {
            name: (f(x1, x2), jax.grad(lambda a, b, f=f: f(a, b).sum())(x1, x2))
            for name, f in functions.items()
        }

    if constant:
        found = optimised(lambda: everything(x1, x2))()
    else:
        found = optimised(everything, x1, x2)(x1, x2)
    wanted = {
        "cosine": oracle.cosine_similarity(x1, x2),
        "same": np.ones(4),
        **{
            f"distance {p}": scale * oracle.pairwise_distance(x1, x2, p=p, eps=0.0)
            for p in (0.5, 1.0, 2.0, 3.0, float("inf"))
        },
        "triplet": scale * oracle.triplet_margin_loss(x1, x2, -x2, margin=2.0, eps=0.0),
        "embedding": oracle.cosine_embedding_loss(x1, x2, np.array([1, -1, 1, -1])),
    }
    for name, (value, gradient) in found.items():
        size = wanted[name].max()
        np.testing.assert_allclose(value / size, wanted[name] / size, 1e-5, 1e-6, err_msg=name)
        assert np.all(np.isfinite(gradient)), name
