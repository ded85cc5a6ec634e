"""What a linear layer's softmax says about labels and itself, without all logits at once."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import PrecisionLike
from jax.typing import ArrayLike

from jaxloss._base import checks, meshes
from jaxloss._base.call import public
from jaxloss.core import cross_entropy
from jaxloss.core.classes.axes import AxisName, ClassAxes
from jaxloss.core.classes.choices import choose
from jaxloss.core.linear.examples import of_examples
from jaxloss.core.linear.problem import How, Layer, Rows, Shared
from jaxloss.core.statistics import Statistics, statistics_of


class Terms(NamedTuple):
    """What the logits go through first; None is left out."""

    temperature: jax.Array | None
    softcap: jax.Array | None

    @classmethod
    def of(cls, temperature: ArrayLike, softcap: ArrayLike | None, layer: Layer) -> Terms:
        """Checks what a caller passed."""
        return cls(
            cross_entropy.factor("temperature", temperature, layer.wide, absent=1),
            cross_entropy.factor("softcap", softcap, layer.wide, absent=None),
        )


@public(
    static=("chunk_size", "precision", "axis_name", "features_axis_name"),
    labels=("labels",),
    domain={"temperature": checks.POSITIVE, "softcap": checks.POSITIVE},
    absent_at_default=("temperature",),
)
def linear_softmax_statistics(
    inputs: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    softcap: ArrayLike | None = None,
    chunk_size: int | None = None,
    precision: PrecisionLike = None,
    axis_name: AxisName = None,
    features_axis_name: AxisName = None,
) -> Statistics:
    """Log-probabilities of labels, log normalizer, entropy and prediction of a linear layer.

    `softmax_statistics(inputs @ kernel.T + bias, labels)`, without ever holding the logits of all
    examples, neither forwards nor backwards: for policies (`log_prob`, `entropy`), for a teacher's
    most likely classes (several labels), for perplexity and accuracy in one pass.

    For each result and for bad labels see `softmax_statistics`; for half operands, blocks and
    meshes see `linear_softmax_cross_entropy`, which takes as much memory.

    Args:
      inputs: floating-point array (..., D), features.
      kernel: (C, D), one row of weights per class; see `linear_softmax_cross_entropy`.
      labels: class indices, integer (...), or several for each example, (..., K).
      bias: (C,).
      where: boolean, (..., 1) or broadcastable to it with its rank: the examples that take part.
        The others have the prediction -1 and 0 in the other results, whatever they hold.
      temperature: what the logits are divided by, after the soft cap; positive.
      softcap: logits become softcap · tanh(logits / softcap); positive.
      chunk_size: bounds the memory: about as many logits exist at a time as `chunk_size` classes
        have over all examples, and at least those of one example.
      precision: of the matrix products, a `jax.lax.PrecisionLike`; "highest" also keeps the
        gradient of the logits in float32, instead of rounding it to the dtype of half operands.
      axis_name: inside `jax.shard_map`, the mesh axis over which the classes are sharded; labels
        and predictions are then global class indices, `kernel` and `bias` the local part.
      features_axis_name: inside `jax.shard_map`, the mesh axis over which the features of `kernel`
        are sharded, as with FSDP; `inputs` have all of them.

    Returns:
      `Statistics`: `log_prob` in the shape of `labels`, `log_normalizer`, `entropy` and
      `prediction` (...); the floats at least float32.

    Raises:
      TypeError: `inputs` is not floating-point, or `labels` not integer.
      ValueError: the shapes, `temperature`, `softcap` or `chunk_size` do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> jnp.set_printoptions(precision=4)
      >>> inputs = jnp.array([[1.0, 2.0], [0.0, -1.0]])
      >>> embedding = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [-1.0, 0.0]])
      >>> found = jaxloss.linear_softmax_statistics(inputs, embedding, jnp.array([1, 3]))
      >>> print(found.log_prob, found.entropy, found.prediction)
      [-0.7052 -1.09  ] [1.1105 1.3157] [1 0]

    Source: as `softmax_statistics`; Wijmans et al., Cut Your Losses in Large-Vocabulary Language
    Models, arXiv:2411.09009.
    """
    layer = Layer.of(inputs, kernel, bias, features_axis_name)
    taking_part = layer.mask(where)
    labels = jnp.asarray(labels)
    several = labels.shape[len(layer.batch_shape) :][:1]
    labels = checks.labels("labels", labels, (*layer.batch_shape, *several))
    labels = layer.known(labels, taking_part, axis_name)
    rows = Rows((layer.inputs,), labels, taking_part)
    shared = Shared((layer.kernel,), (layer.bias,), Terms.of(temperature, softcap, layer))
    features = (meshes.named(features_axis_name),)
    how = How(_statistics, axis_name, precision, features=features)
    found = of_examples(rows, shared, how, chunk_size)
    if taking_part is None:
        return found
    return found._replace(prediction=jnp.where(taking_part, found.prediction, -1))


def _statistics(
    logits: tuple[jax.Array, ...], labels: jax.Array, terms: Terms, classes: ClassAxes
) -> Statistics:
    (scores,) = logits
    chosen = choose(labels, scores, classes, None)
    return statistics_of(scores, chosen, None, terms.temperature, terms.softcap, classes)
