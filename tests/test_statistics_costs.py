"""What `softmax_statistics` costs: what is not used costs nothing, and many labels store little."""

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_statistics import pulled

import jaxloss

LARGE = jax.ShapeDtypeStruct((256, 640), jnp.float32)


def slope_of(part, labels, **options):
    def total(logits):
        return -jnp.sum(getattr(jaxloss.softmax_statistics(logits, labels, **options), part))

    return hlo.compiled(jax.value_and_grad(total), LARGE)


def test_what_is_not_used_costs_nothing():
    labels = jnp.zeros(256, int)

    def loss(logits):
        return jnp.sum(jaxloss.softmax_cross_entropy_with_integer_labels(logits, labels))

    least = hlo.cost(hlo.compiled(jax.value_and_grad(loss), LARGE), "bytes accessed")
    assert hlo.cost(slope_of("log_prob", labels), "bytes accessed") < 1.1 * least
    both = hlo.compiled(jax.grad(lambda x: jnp.sum(pulled(x, labels))), LARGE)
    assert hlo.cost(both, "bytes accessed") > 1.1 * least


@pytest.mark.parametrize("count", [8, 20])
def test_no_array_of_labels_and_classes(count):
    def total(logits, labels):
        return jnp.sum(jaxloss.softmax_statistics(logits, labels).log_prob)

    labels = jax.ShapeDtypeStruct((256, count), jnp.int32)  # Known ones would be folded.
    program = hlo.compiled(jax.value_and_grad(total), LARGE, labels)
    stored = [np.prod(i.dims, dtype=int) for i in hlo.executed(program)]
    assert max(stored) == 256 * 640
    assert hlo.operations(program, "scatter") == 0


def test_no_array_of_labels_and_classes_but_where_one_is_planted():
    def total(logits, labels):
        hot = jax.nn.one_hot(labels, 640)
        return jnp.sum(jnp.sin(hot) * logits[:, None])

    program = hlo.compiled(jax.grad(total), LARGE, jax.ShapeDtypeStruct((256, 20), jnp.int32))
    assert max(np.prod(i.dims, dtype=int) for i in hlo.executed(program)) >= 20 * 256 * 640
