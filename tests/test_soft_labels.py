"""Cross entropy of class probabilities, and the poly loss: derivatives at the awkward points."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from choices import choices_for
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxloss

inf = math.inf


def poly(x, labels, epsilon):
    return jaxloss.poly_loss_cross_entropy(x, labels, epsilon=epsilon)


def plain(x, labels, epsilon):
    log_p = jax.nn.log_softmax(x)
    return jnp.sum(labels * (epsilon * -jnp.expm1(log_p) - log_p), -1)


@functools.partial(jax.jit, static_argnames="loss")
def derivatives(x, labels, epsilon, loss=poly):
    """Each of the first two orders, by all arguments, in several modes."""
    return {
        "value": loss(x, labels, epsilon),
        "slopes": jax.grad(loss, (0, 1, 2))(x, labels, epsilon),
        "reverse over reverse": jax.jacrev(jax.jacrev(loss))(x, labels, epsilon),
        "forward over forward": jax.jacfwd(jax.jacfwd(loss))(x, labels, epsilon),
        "mixed": jax.jacfwd(jax.grad(loss, (0, 1)), (0, 1, 2))(x, labels, epsilon),
    }


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_digits_where_a_class_has_almost_all_of_p(platform):
    x, epsilon = np.array([25, 3, 1, 0], np.float32), np.float32(2)
    examples = np.array([[1, 0, 0, 0], [0.9, 0.1, 0, 0], [0, 1, 0, 0]], np.float32)
    jax.clear_caches()  # Of what was chosen for other platforms.
    with choices_for(platform):
        found = [derivatives(x, labels, epsilon) for labels in examples]
    jax.clear_caches()
    with jax.enable_x64(True):
        wide = [np.asarray(y, np.float64) for y in (x, examples, epsilon)]
        wanted = [derivatives(wide[0], labels, wide[2], loss=plain) for labels in wide[1]]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 3e-6, 1e-13), found, wanted)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_logits_that_devices_share_beside_labels_that_they_do_not(softcap):
    def loss(x, labels):
        return jaxloss.softmax_cross_entropy(x, labels, softcap=softcap)

    def program(loss, x):
        return jax.value_and_grad(lambda x: jnp.sum(loss(x, labels)))(x), jax.hessian(
            lambda x: jnp.sum(loss(x, labels))
        )(x)

    x, labels = jnp.array([[0.0, 1, 3]]), jnp.asarray(np.random.default_rng(0).random((8, 3)))
    labels = labels.astype(x.dtype)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    specs = {"in_specs": (P(), P("data")), "out_specs": P("data")}
    shared = jax.shard_map(loss, mesh=mesh, **specs)
    found = jax.jit(lambda x: program(shared, x))(x)
    wanted = jax.jit(lambda x: program(lambda x, y: loss(jnp.broadcast_to(x, y.shape), y), x))(x)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-5, 1e-5), found, wanted)


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "poly_loss_cross_entropy"])
def test_a_logit_of_minus_infinity_in_a_loop(name):
    loss = getattr(jaxloss, name)

    def scanned(x, labels):
        rows = x[:, None], labels[:, None]
        return lax.scan(lambda total, row: (total + loss(*row).sum(), None), 0.0, rows)[0]

    def second(f):
        return [jax.jacrev(jax.grad(f, i), j)(x, labels) for i in (0, 1) for j in (0, 1)]

    x, labels = jnp.array([[-inf, 0, 1]]), jnp.array([[0, 0.25, 0.75]])
    found, wanted = jax.jit(lambda: (second(scanned), second(lambda x, y: loss(x, y).sum())))()
    for i, (x, y) in enumerate(zip(found, wanted, strict=True)):
        np.testing.assert_allclose(x, y, 1e-5, 1e-6, err_msg=str(i))


def test_infinities_of_either_sign():
    x, labels = jnp.array([[0, -inf, 1]]), jnp.array([[0.5, 0.5, 0]])
    weights = jnp.array([1.0, -1, 1])
    found = jaxloss.softmax_cross_entropy(x, labels, class_weights=weights)
    np.testing.assert_array_equal(found, [-inf])
    nothing, one = jnp.full(3, -inf), jnp.array([1.0, 0, 0])
    slopes = jax.grad(poly, (1, 2))(nothing, one, jnp.float32(1))
    np.testing.assert_array_equal(slopes[0], [inf, 1, 1])
    np.testing.assert_array_equal(slopes[1], 1)
