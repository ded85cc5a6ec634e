"""How far a linear layer's softmax is from a teacher's, without all logits of either at once."""

from __future__ import annotations

import functools
import numbers

import jax
from jax.lax import PrecisionLike
from jax.typing import ArrayLike

from jaxloss._base import checks, meshes
from jaxloss._base.call import public
from jaxloss.core.classes.axes import AxisName, ClassAxes
from jaxloss.core.linear.examples import of_examples
from jaxloss.core.linear.problem import How, Layer, Rows, Shared
from jaxloss.core.linear.statistics import Terms
from jaxloss.core.softmax_divergence import divergence_of


@public(
    static=("beta", "chunk_size", "precision", "axis_name", "features_axis_name"),
    domain={"temperature": checks.POSITIVE, "softcap": checks.POSITIVE},
    absent_at_default=("temperature",),
)
def linear_softmax_divergence(
    inputs: ArrayLike,
    kernel: ArrayLike,
    teacher_inputs: ArrayLike,
    teacher_kernel: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    teacher_bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    beta: float = 0.0,
    softcap: ArrayLike | None = None,
    chunk_size: int | None = None,
    precision: PrecisionLike = None,
    axis_name: AxisName = None,
    features_axis_name: AxisName = None,
) -> jax.Array:
    """Generalized Jensen-Shannon divergence of a teacher P and a student Q, two linear layers.

    loss = β KL(P ‖ M) + (1-β) KL(Q ‖ M), M = β P + (1-β) Q; at β = 0 it is KL(P ‖ Q), the usual
    distillation, and at β = 1 KL(Q ‖ P). The formula itself tends to 0 at both ends; these are the
    limits of the formula divided by β and by 1-β.

    P and Q are the softmax of each layer's `inputs @ kernel.T + bias`. Only a few rows of these
    logits exist at a time, forwards and backwards.

    At least 0, and accurate to rounding where the two agree. A class with logits of -inf in both is
    absent. Where only the student's is -inf, KL(P ‖ Q) is +inf, with the gradient q - p for the
    student's logits, 0 for the teacher's, and for the temperature what follows from these. The
    teacher has a gradient like any argument, which costs nothing where it is not asked for. The
    loss is not multiplied by the square of the temperature.

    For half operands, blocks and meshes see `linear_softmax_cross_entropy`; on explicit meshes the
    teacher's arrays are laid out like the student's.

    Args:
      inputs: floating-point array (..., D), the student's features.
      kernel: (C, D), the student's weights, one row per class.
      teacher_inputs: (..., D'), the teacher's features; D' may differ from D.
      teacher_kernel: (C, D'), the teacher's weights for the same classes.
      bias: (C,), the student's.
      teacher_bias: (C,), the teacher's.
      where: boolean, (..., 1) or broadcastable to it with its rank: the examples that take part.
        The others have loss and gradient 0, whatever student and teacher hold.
      temperature: what the logits of both are divided by, after the soft cap; positive.
      beta: β in [0, 1], a Python number.
      softcap: logits of both become softcap · tanh(logits / softcap); positive.
      chunk_size: bounds the memory: of each, about as many logits exist at a time as `chunk_size`
        classes have over all examples, and at least those of one example.
      precision: of the matrix products, a `jax.lax.PrecisionLike`; "highest" also keeps the
        gradient of the logits in float32, instead of rounding it to the dtype of half operands.
      axis_name: inside `jax.shard_map`, the mesh axis over which the classes are sharded; kernels
        and biases are then the local part.
      features_axis_name: inside `jax.shard_map`, the mesh axis over which the features of both
        kernels are sharded, as with FSDP; both inputs have all of theirs.

    Returns:
      One loss per example, shape (...); at least float32.

    Raises:
      TypeError: an argument is not floating-point.
      ValueError: the shapes, `temperature`, `softcap`, `beta` or `chunk_size` do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> jnp.set_printoptions(precision=4)
      >>> inputs = jnp.array([[1.0, 2.0], [0.0, -1.0]])
      >>> kernel = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.5, -0.5]])
      >>> print(jaxloss.linear_softmax_divergence(inputs, kernel, inputs, 2 * kernel))
      [0.1054 0.0727]

    Source: Agarwal et al., On-Policy Distillation of Language Models, arXiv:2306.13649; Hinton et
    al., arXiv:1503.02531.
    """
    student = Layer.of(inputs, kernel, bias, features_axis_name)
    teacher = Layer.of(
        teacher_inputs, teacher_kernel, teacher_bias, features_axis_name, prefix="teacher_"
    )
    if teacher.batch_shape != student.batch_shape:
        shape = student.batch_shape
        rule = f"have shape {shape} before its features, as `inputs` has"
        checks.fail(ValueError, "teacher_inputs", rule, teacher.inputs.shape)
    if len(teacher.kernel) != len(student.kernel):
        rule = f"hold a row for each of the {len(student.kernel)} classes of `kernel`"
        checks.fail(ValueError, "teacher_kernel", rule, teacher.kernel.shape)
    if not isinstance(beta, numbers.Real) or not 0 <= beta <= 1:
        checks.fail(ValueError, "beta", "be a Python number in [0, 1]", beta)
    layers = student, teacher
    rows = Rows(tuple(layer.inputs for layer in layers), None, student.mask(where))
    shared = Shared(
        tuple(layer.kernel for layer in layers),
        tuple(layer.bias for layer in layers),
        Terms.of(temperature, softcap, max(layers, key=lambda one: one.wide.dtype.itemsize)),
    )
    objective = functools.partial(_divergence, beta=float(beta))
    features = (meshes.named(features_axis_name),) * 2
    how = How(objective, axis_name, precision, features=features)
    return of_examples(rows, shared, how, chunk_size)


def _divergence(
    logits: tuple[jax.Array, ...],
    labels: None,
    terms: Terms,
    classes: ClassAxes,
    *,
    beta: float,
) -> jax.Array:
    widest = max((x.dtype for x in logits), key=lambda dtype: dtype.itemsize)
    student, teacher = (x.astype(widest) for x in logits)
    return divergence_of(student, teacher, None, terms.temperature, beta, terms.softcap, classes)
