"""What is compiled: the benchmarks' workloads, and those whose size or dtype asks for a chip."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxloss
from benchmarks import inputs as draw
from benchmarks import peers
from benchmarks.inputs import Arrays, Inputs
from benchmarks.peers import Loss
from benchmarks.workloads import WORKLOADS, Workload
from jaxloss import functional as F

Shapes = tuple[jax.ShapeDtypeStruct, ...]


@dataclasses.dataclass(frozen=True)
class Contender:
    """One implementation, on a mesh with one type of axes."""

    loss: Loss
    axes: AxisType = AxisType.Auto


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss of such arguments, reduced to one number, with its gradients."""

    name: str
    group: str
    inputs: Inputs
    contenders: Mapping[str, Contender]  # jaxloss, then its peers.
    floats: tuple[int, ...]  # The arguments to differentiate.
    specs: tuple[P, ...] | None = None  # How the arguments lie on the mesh ("data", "model").

    def shapes(self) -> Shapes:
        return draw.shapes(self.inputs)

    def arrays(self) -> Arrays:
        return draw.arrays(self.inputs)


# One chip. --------------------------------------------------------------------------------------


def _widened(peer: Loss) -> Loss:
    """The peer in float32, as jaxloss computes: what one would write around it for bfloat16."""

    def loss(*args):
        return peer(*(x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for x in args))

    return loss


def _case(workload: Workload, name: str, inputs: Inputs) -> Case:
    losses = {"jaxloss": workload.jaxloss, workload.peer_name: _widened(workload.peer)}
    contenders = {name: Contender(loss) for name, loss in losses.items()}
    return Case(name, workload.group, inputs, contenders, workload.floats)


def _resized(name: str, inputs: Inputs) -> Case:
    (workload,) = (w for w in WORKLOADS if w.name == name)
    first, *_ = draw.shapes(inputs)
    size = "x".join(map(str, first.shape))
    return _case(workload, f"{name}, {first.dtype} {size}", inputs)


_IMAGENET = 65536, 1000
_VECTORS = 65536, 768
_HALVES = "elementwise", "classes", "embeddings"  # Groups.


# Linear cross entropy at the size of a language model. ------------------------------------------


def _plain(inputs, kernel, labels):
    logits = jnp.matmul(inputs, kernel.T, preferred_element_type=jnp.float32)
    return peers.cross_entropy(logits, labels)


def _plain_half(inputs, kernel, labels):
    return peers.cross_entropy((inputs @ kernel.T).astype(jnp.float32), labels)


def _scanned(inputs, kernel, labels, weights):
    @jax.checkpoint
    def portion(total, rows):
        inputs, labels, weights = rows
        return total + jnp.sum(_plain(inputs, kernel, labels) * weights), None

    rows = inputs.reshape(8, -1, inputs.shape[1]), labels.reshape(8, -1), weights.reshape(8, -1)
    return lax.scan(portion, jnp.float32(0), rows)[0]


def _mean(losses: Loss) -> Loss:
    return lambda inputs, kernel, labels: losses(inputs, kernel, labels).mean()


def _weighted(losses: Loss) -> Loss:
    """With a weight for each example, as a mask or a reward gives one."""
    return lambda inputs, kernel, labels, w: jnp.sum(losses(inputs, kernel, labels) * w)


def _scanned_mean(inputs, kernel, labels):
    weights = jnp.full(labels.shape, 1 / labels.size, jnp.float32)
    return _scanned(inputs, kernel, labels, weights)


def _with_weights(inputs: Inputs, examples: int) -> Inputs:
    """Followed by a weight for each example, in float32."""

    def drawn(key):
        own, others = jax.random.split(key)
        return *inputs(others), draw.unit(own, examples)

    return drawn


def _linear(examples: int, features: int, classes: int) -> list[Case]:
    mean = draw.half(draw.features(examples, features, classes))
    inputs = mean, _with_weights(mean, examples)
    size = f"bfloat16 {examples}x{features}x{classes}"
    ours = F.linear_cross_entropy, _weighted(jaxloss.linear_softmax_cross_entropy)
    scans = _scanned_mean, _scanned
    cases = []
    for i, (name, form) in enumerate({"": _mean, ", weighted": _weighted}.items()):
        losses = {
            "jaxloss": ours[i],
            "plain, float32 logits": form(_plain),
            "plain, bfloat16 logits": form(_plain_half),
            "scan of 8, checkpoint": scans[i],
        }
        contenders = {name: Contender(loss) for name, loss in losses.items()}
        name = f"linear_cross_entropy{name}, {size}"
        cases.append(Case(name, "linear", inputs[i], contenders, (0, 1)))
    return cases


def _beside_the_loss(examples: int, features: int, classes: int) -> list[Case]:
    """What is told of a softmax beside its loss, each with a weight for each example."""
    with_labels = draw.half(draw.features(examples, features, classes))

    def with_teacher(key):
        own, others = jax.random.split(key)
        return *with_labels(own)[:2], *with_labels(others)[:2]

    size = f"bfloat16 {examples}x{features}x{classes}"

    def statistics(inputs, kernel, labels, w):
        found = jaxloss.linear_softmax_statistics(inputs, kernel, labels)
        return jnp.sum((found.log_prob + found.entropy) * w)

    def plain_statistics(inputs, kernel, labels, w):
        logits = jnp.matmul(inputs, kernel.T, preferred_element_type=jnp.float32)
        log_p = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(log_p, labels[:, None], 1)[:, 0]
        return jnp.sum((chosen - jnp.sum(jnp.exp(log_p) * log_p, 1)) * w)

    def divergence(*args):
        return jnp.sum(jaxloss.linear_softmax_divergence(*args[:-1]) * args[-1])

    def plain_divergence(inputs, kernel, teacher_inputs, teacher_kernel, w):
        log_q, log_p = (
            jax.nn.log_softmax(jnp.matmul(x, y.T, preferred_element_type=jnp.float32))
            for x, y in ((inputs, kernel), (teacher_inputs, teacher_kernel))
        )
        return jnp.sum(jnp.sum(jnp.exp(log_p) * (log_p - log_q), 1) * w)

    cases = []
    for name, ours, plain, inputs in (
        ("linear_softmax_statistics", statistics, plain_statistics, with_labels),
        ("linear_softmax_divergence", divergence, plain_divergence, with_teacher),
    ):
        contenders = {"jaxloss": Contender(ours), "plain, float32 logits": Contender(plain)}
        name, inputs = f"{name}, {size}", _with_weights(inputs, examples)
        cases.append(Case(name, "linear", inputs, contenders, (0, 1)))
    return cases


_LABELLED = draw.classes(*_IMAGENET)
_PROBABLE = draw.of_one_shape(_IMAGENET, draw.normal, draw.distribution)
_PAIRS, _TRIPLETS = draw.pairs(*_VECTORS), draw.numbers(3, *_VECTORS)

CASES = [
    *(_case(w, w.name, w.inputs) for w in WORKLOADS if w.floats),
    *(
        _case(w, f"{w.name}, bfloat16", draw.half(w.inputs))
        for w in WORKLOADS
        if w.group in _HALVES
    ),
    _resized("cross_entropy", _LABELLED),
    _resized("cross_entropy", draw.half(_LABELLED)),
    _resized("cross_entropy", draw.half(draw.classes(8192, 128256))),
    _resized("cross_entropy, smoothed", draw.half(_LABELLED)),
    _resized("cross_entropy, probabilities", _PROBABLE),
    _resized("cross_entropy, probabilities", draw.half(_PROBABLE)),
    _resized("cross_entropy, segmentation", draw.half(draw.classes(16, 21, 512, 512))),
    _resized("multi_margin_loss", _LABELLED),
    _resized("cosine_embedding_loss", _PAIRS),
    _resized("cosine_embedding_loss", draw.half(_PAIRS)),
    _resized("triplet_margin_loss", _TRIPLETS),
    _resized("triplet_margin_loss", draw.half(_TRIPLETS)),
    *_linear(8192, 4096, 128256),
    *_beside_the_loss(8192, 4096, 128256),
]


# A mesh. ----------------------------------------------------------------------------------------

# What the examples are sharded over, and the classes and the features of the kernel.
_LAYOUTS = {
    "classes over model": (("data",), P("model", None)),
    "features over data": (("data", "model"), P(None, "data")),
    "classes over both": (("data", "model"), P(("data", "model"), None)),
    "classes over model, features over data": (("data",), P("model", "data")),
}


def _mapped(axes: tuple[str, ...], kernel_spec: P) -> Loss:
    """The loss of a device's own examples over its own classes."""
    classes, features = kernel_spec
    # Who shares the classes sees the same examples.
    own = tuple(axis for axis in axes if axis not in (classes or ()))

    def local(inputs, kernel, labels):
        spread = {"axis_name": classes, "features_axis_name": features}
        loss = F.linear_cross_entropy(inputs, kernel, labels, **spread)
        return lax.pmean(loss, own)

    def loss(inputs, kernel, labels):
        specs = P(own), kernel_spec, P(own)
        return jax.shard_map(local, in_specs=specs, out_specs=P())(inputs, kernel, labels)

    return loss


def mesh_cases(examples: int, features: int, classes: int) -> list[Case]:
    """Linear cross entropy on a mesh: four ways for the kernel to lie, three to write it."""
    inputs = draw.half(draw.features(examples, features, classes))
    cases = []
    for where, (axes, kernel_spec) in _LAYOUTS.items():
        ways = {
            "automatic axes": Contender(F.linear_cross_entropy),
            "explicit axes": Contender(F.linear_cross_entropy, AxisType.Explicit),
            "shard_map": Contender(_mapped(axes, kernel_spec)),
        }
        specs = P(axes), kernel_spec, P(axes)
        for how, ours in ways.items():
            contenders = {"jaxloss": ours, "plain, automatic axes": Contender(_PLAIN_MEAN)}
            name = f"linear_cross_entropy, {where}, {how}"
            cases.append(Case(name, "mesh", inputs, contenders, (0, 1), specs))
    return cases


_PLAIN_MEAN = _mean(_plain)  # One function, so that it is compiled once for the three.


def arguments(
    shapes: Shapes, specs: tuple[P, ...] | None, sharding: Callable[[Any], Any]
) -> Shapes:
    """The shapes with their shardings."""
    return tuple(
        jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding(spec))
        for shape, spec in zip(shapes, specs or (None,) * len(shapes), strict=True)
    )
