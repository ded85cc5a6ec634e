"""Losses that tell examples that belong together from all others of a batch."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from jaxloss._base import checks, elementwise, meshes
from jaxloss._base.call import public
from jaxloss.core.classes.axes import AxisName
from jaxloss.core.classes.capping import inverse
from jaxloss.core.contrastive.pairs import BLOCK_SCORES, How, Pairs, Side, Statistic, found
from jaxloss.core.contrastive.statistics import Count, LogSum, SoftplusSum, Sum, lowest

# How many columns a block has by default even if they make more similarities than it should, for
# with these it is no larger than the embeddings.
_BLOCK_COLUMNS = 1024


@public(static=("symmetric", "chunk_size", "axis_name"), domain={"temperature": checks.POSITIVE})
def info_nce_loss(
    x1: ArrayLike,
    x2: ArrayLike,
    *,
    temperature: ArrayLike = 0.07,
    where: ArrayLike | None = None,
    symmetric: bool = True,
    chunk_size: int | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """InfoNCE, the loss of CLIP: which row of x2 belongs to each row of x1, and vice versa.

    loss_i = -log softmax_j(x1_i · x2_j / temperature)_i; if `symmetric`, the mean of that and of
    -log softmax_j(x1_j · x2_i / temperature)_i. An example with no other beside it has loss 0.

    Embeddings are taken as they are: normalise them first. Half embeddings go into the products
    as they are, and sums are in float32; the gradient of the similarities is rounded to their dtype
    before its own products, unless `jax.default_matmul_precision` is "highest". The same setting
    governs products of float32, which TPUs and GPUs round by default.

    Similarities exist for a few columns at a time, forwards and backwards; both terms of a
    symmetric loss share them. On a mesh with explicit axis types, and inside `jax.shard_map` with
    `axis_name`, rows stay where they are, and the embeddings of x2 go round from device to device,
    never all on one. With automatic axis types the compiler decides.

    Args:
      x1: floating-point array (N, D).
      x2: likewise; row i belongs to row i of `x1`.
      temperature: above 0.
      where: boolean, (N,) or (1,): the pairs that take part. The others count neither as examples
        nor as contrast, have loss and gradient 0, and may hold anything.
      symmetric: whether to find the row of x1 for each row of x2 as well.
      chunk_size: how many columns of similarities exist at a time. By default as many as make 4
        million similarities, or min(D, 1024) where that is more.
      axis_name: inside `jax.shard_map`, the mesh axis over which the examples are sharded; the
        examples of all devices are the contrast.

    Returns:
      One loss per pair, (N,); at least float32.

    Raises:
      TypeError: `x1` or `x2` is not floating-point.
      ValueError: the shapes, `temperature` or `chunk_size` do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> jnp.set_printoptions(precision=4)
      >>> images = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
      >>> texts = jnp.array([[0.8, 0.6], [1.0, 0.0], [0.0, 1.0]])
      >>> print(jaxloss.info_nce_loss(images, texts, temperature=0.5))
      [1.0711 1.0711 0.4604]

    Source: van den Oord et al., Representation learning with contrastive predictive coding,
    arXiv:1807.03748; Radford et al., Learning transferable visual models from natural language
    supervision, arXiv:2103.00020.
    """
    (x1, x2), where = _embeddings(where, x1=x1, x2=x2)
    scale = inverse(checks.number("temperature", temperature, x1))

    def part(x1, x2, where, scale, axis_name):
        negative = Statistic(LogSum)
        how = _how(x1, (negative,), (negative,) * symmetric, chunk_size, axis_name)
        pairs = _paired(x1, x2, where, scale, None, axis_name)
        own = _own(pairs)
        both = [x for sums in found(pairs, how) for x in sums]
        losses = sum((_behind(log_sum, own) for log_sum in both), start=jnp.zeros_like(own))
        return _present(where, losses / len(both))

    return _by_device(part, (x1, x2, where), (scale,), axis_name)


@public(static=("chunk_size", "axis_name"))
def sigmoid_contrastive_loss(
    x1: ArrayLike,
    x2: ArrayLike,
    *,
    scale: ArrayLike,
    bias: ArrayLike,
    where: ArrayLike | None = None,
    chunk_size: int | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """The pairwise sigmoid loss, the loss of SigLIP: whether two rows belong together.

    loss_i = Σ_j log(1 + exp(-z_ij (scale x1_i · x2_j + bias))), with z_ij = 1 for i = j, else -1.
    The paper's loss is the mean of these over i.

    Products, memory and meshes as in `info_nce_loss`.

    Args:
      x1: floating-point array (N, D).
      x2: likewise; row i belongs to row i of `x1`.
      scale: factor of the similarities, the inverse of a temperature. SigLIP learns its logarithm,
        starting from log 10.
      bias: added to the similarities. SigLIP learns it, starting from -10.
      where: boolean, (N,) or (1,): the pairs that take part. The others count neither as examples
        nor as contrast, have loss and gradient 0, and may hold anything.
      chunk_size: how many columns of similarities exist at a time, as in `info_nce_loss`.
      axis_name: inside `jax.shard_map`, the mesh axis over which the examples are sharded; the
        examples of all devices are the contrast.

    Returns:
      One loss per row of `x1`, (N,); at least float32.

    Raises:
      TypeError: `x1` or `x2` is not floating-point.
      ValueError: the shapes or `chunk_size` do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> jnp.set_printoptions(precision=4)
      >>> images = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
      >>> texts = jnp.array([[0.8, 0.6], [1.0, 0.0], [0.0, 1.0]])
      >>> print(jaxloss.sigmoid_contrastive_loss(images, texts, scale=10.0, bias=-10.0))
      [2.8201 2.8382 0.7113]

    Source: Zhai et al., Sigmoid loss for language image pre-training, arXiv:2303.15343.
    """
    (x1, x2), where = _embeddings(where, x1=x1, x2=x2)
    numbers = (checks.number("scale", scale, x1), checks.number("bias", bias, x1))

    def part(x1, x2, where, scale, bias, axis_name):
        how = _how(x1, (Statistic(SoftplusSum),), (), chunk_size, axis_name)
        pairs = _paired(x1, x2, where, scale, bias, axis_name)
        ((others,), _) = found(pairs, how)
        return _present(where, others + elementwise.softplus(-_own(pairs)))

    return _by_device(part, (x1, x2, where), numbers, axis_name)


@public(
    static=("chunk_size", "axis_name"),
    labels=("labels",),
    domain={"temperature": checks.POSITIVE},
)
def supervised_contrastive_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 0.07,
    where: ArrayLike | None = None,
    chunk_size: int | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """The supervised contrastive loss: which of the other examples have the same label.

    loss_i = mean over the positives p of -log exp(s_ip) / Σ_{a ≠ i} exp(s_ia), with s_ij =
    embeddings_i · embeddings_j / temperature; the positives are the other examples with the same
    label. This is L_out of the paper. An example without a positive has loss and gradient 0.

    Products, memory and meshes as in `info_nce_loss`.

    Args:
      embeddings: floating-point array (N, D), taken as they are: normalise them first.
      labels: integer array (N,), equal for examples that belong together; any integers.
      temperature: above 0.
      where: boolean, (N,) or (1,): the examples that take part. The others count neither as
        examples nor as contrast, have loss and gradient 0, and may hold anything.
      chunk_size: how many columns of similarities exist at a time, as in `info_nce_loss`.
      axis_name: inside `jax.shard_map`, the mesh axis over which the examples are sharded; the
        examples of all devices are the contrast, and labels are compared between devices.

    Returns:
      One loss per example, (N,); at least float32.

    Raises:
      TypeError: `embeddings` is not floating-point or `labels` not integer.
      ValueError: the shapes, `temperature` or `chunk_size` do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> jnp.set_printoptions(precision=4)
      >>> embeddings = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
      >>> labels = jnp.array([0, 0, 1])
      >>> print(jaxloss.supervised_contrastive_loss(embeddings, labels, temperature=0.5))
      [0.1839 0.513  0.    ]

    Source: Khosla et al., Supervised contrastive learning, arXiv:2004.11362.
    """
    (embeddings,), where = _embeddings(where, embeddings=embeddings)
    labels = _labels(labels, embeddings)
    scale = inverse(checks.number("temperature", temperature, embeddings))

    def part(embeddings, labels, where, scale, axis_name):
        wanted = [Statistic(LogSum)] + [Statistic(kind, True) for kind in (LogSum, Sum, Count)]
        how = _how(embeddings, tuple(wanted), (), chunk_size, axis_name)
        side = _side(embeddings, labels, where)
        side = side._replace(places=_places(embeddings, axis_name))
        (negative, positive, total, count), _ = found(Pairs(side, side, scale), how)
        # One positive is all of their sum: what is left of it there is rounding.
        several, is_any = count > 1, count > 0
        spread = jnp.where(several, positive - total / jnp.where(several, count, 1), 0)
        losses = _behind(negative, jnp.where(is_any, positive, 0)) + spread
        return _present(where, jnp.where(is_any, losses, 0))

    return _by_device(part, (embeddings, labels, where), (scale,), axis_name)


def _embeddings(
    where: ArrayLike | None, **values: ArrayLike
) -> tuple[list[jax.Array], jax.Array | None]:
    """The embeddings and the mask, (N,)."""
    arrays = checks.operands(**values)
    (name, first), *_ = zip(values, arrays, strict=True)
    if first.ndim != 2:
        checks.fail(ValueError, name, "have shape (N, D)", first.shape)
    checks.same_shape(**dict(zip(values, arrays, strict=True)))
    rows = jax.ShapeDtypeStruct(first.shape[:1], first.dtype)
    where = checks.mask(where, f"{name}[:, 0]", rows)
    return arrays, None if where is None else jnp.broadcast_to(where, rows.shape)


def _labels(labels: ArrayLike, embeddings: jax.Array) -> jax.Array:
    labels = checks.array("labels", labels)
    if jnp.issubdtype(labels.dtype, jnp.unsignedinteger):
        # They are only compared: others than 0 to 2**31 stay apart as negative ones.
        size = labels.dtype.itemsize
        labels = lax.bitcast_convert_type(labels, jnp.dtype(f"int{8 * size}"))
    return checks.labels("labels", labels, embeddings.shape[:1])


def _how(embeddings, of_rows, of_columns, chunk_size, axis_name) -> How:
    count, features = embeddings.shape
    if chunk_size is None:
        rows = max(1, count // meshes.spread())
        chunk_size = max(1, BLOCK_SCORES // rows, min(features, _BLOCK_COLUMNS))
    checks.at_least(1, "chunk_size", chunk_size)
    return How(of_rows, of_columns, embeddings.dtype, int(chunk_size), axis_name)


def _places(embeddings: jax.Array, axis_name: AxisName) -> jax.Array:
    """Where the examples stand among those of all devices."""
    count = len(embeddings)
    places = lax.iota(jnp.int32, count)
    return places if axis_name is None else places + count * lax.axis_index(axis_name)


def _side(embeddings: jax.Array, labels: jax.Array, where: jax.Array | None) -> Side:
    # In float32 from here on, so that the gradient of a half embedding is rounded when it is whole.
    embeddings = embeddings.astype(checks.wide(embeddings.dtype))
    if where is not None:
        embeddings = jnp.where(where[:, None], embeddings, 0)
    return Side(embeddings, labels, where=where)


def _paired(x1, x2, where, scale, bias, axis_name) -> Pairs:
    """Rows and columns, of which those at the same place belong together."""
    rows, columns = (_side(x, _places(x, axis_name), where) for x in (x1, x2))
    return Pairs(rows, columns, scale, bias)


def _own(pairs: Pairs) -> jax.Array:
    """The similarity of each row to the column of its place."""
    own = pairs.scale * jnp.sum(pairs.rows.embeddings * pairs.columns.embeddings, 1)
    return own if pairs.bias is None else own + pairs.bias


def _behind(log_sum: jax.Array, own: jax.Array) -> jax.Array:
    """-log of the own share of a softmax, from the log-sum of all others; 0 without any.

    The others alone keep their digits where they add next to nothing.
    """
    alone = log_sum <= lowest(log_sum.dtype)
    return jnp.where(alone, 0, elementwise.softplus(jnp.where(alone, 0, log_sum - own)))


def _present(where: jax.Array | None, losses: jax.Array) -> jax.Array:
    return losses if where is None else jnp.where(where, losses, 0)


def _by_device(
    part: Callable[..., jax.Array], arrays: tuple, numbers: tuple, axis_name: AxisName
) -> jax.Array:
    """part(*arrays, *numbers, axis_name); with explicit axes, of what each device holds."""
    like, axes = meshes.axes_of_rows(arrays)
    if like is None:
        return part(*arrays, *numbers, axis_name)

    def of_device(arrays, numbers):
        return part(*arrays, *numbers, (*meshes.named(axis_name), *axes) or None)

    spec = PartitionSpec(axes or None)
    specs = jax.tree.map(lambda x: spec, arrays), jax.tree.map(lambda _: PartitionSpec(), numbers)
    return meshes.by_device(of_device, (arrays, numbers), like, specs, spec)
