"""The named workloads: what is computed, on which inputs, by jaxloss and by its peers.

jaxloss and torch share a function's name and arguments, so that one description serves both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from benchmarks import inputs as draw
from benchmarks import peers
from benchmarks.inputs import Arrays, Inputs
from benchmarks.peers import Loss
from jaxloss import functional as F


@dataclasses.dataclass(frozen=True)
class Workload:
    """A loss on inputs of one size, reduced to one number, with its gradients.

    A workload without `floats` is the loss alone, called without an outer `jax.jit`.
    """

    name: str
    group: str
    inputs: Inputs
    function: str  # In jaxloss.functional and torch.nn.functional.
    peer: Loss  # In JAX.
    peer_name: str = "plain"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    floats: tuple[int, ...] = (0,)  # The inputs to differentiate.
    ours: Loss | None = None  # Where it is not `function` alone.
    theirs: Callable[..., Any] | None = None  # The same in torch; its first argument is torch.
    fixed: bool = False  # Theirs is a kernel of torchaudio, which torch.compile leaves as it is.
    cudnn: Callable[..., Callable[..., Any]] | None = None  # Makes the same by cuDNN of `torch`.

    def arrays(self) -> Arrays:
        """The inputs that everyone gets."""
        return draw.arrays(self.inputs)

    def jaxloss(self, *args: ArrayLike) -> jax.Array:
        if self.ours is not None:
            return self.ours(*args)
        return getattr(F, self.function)(*args, **self.options)

    def torch(self, torch: Any, *args: Any) -> Any:
        if self.theirs is not None:
            return self.theirs(torch, *args)
        args = tuple(x.long() if x.dtype == torch.int32 else x for x in args)
        return getattr(torch.nn.functional, self.function)(*args, **self.options)


_IMAGE = 2048, 2048  # 4 million elements
_BATCH = 4096, 1000
_EMBEDDING = 16384, 256
_RNNT_SHAPES = (8, 200, 41, 128), (4, 500, 101, 1024)
_RECORDINGS = 64, 1000, 32, 100
_CTC_SHAPES = (32, 150, 32, 30), (16, 1000, 128, 100), (8, 1500, 5000, 60), (64, 32, 37, 20)


def _elementwise(function, inputs, loss, peer_name="plain", floats=(0,), **options):
    peer = peers.mean(loss)
    return Workload(function, "elementwise", inputs, function, peer, peer_name, options, floats)


def _classification(name, inputs, loss, peer_name="plain", function="cross_entropy", **options):
    return Workload(name, "classes", inputs, function, peers.mean(loss), peer_name, options)


WORKLOADS = [
    _elementwise("l1_loss", draw.numbers(2, *_IMAGE), lambda x, y: jnp.abs(x - y)),
    _elementwise("mse_loss", draw.numbers(2, *_IMAGE), lambda x, y: (x - y) ** 2),
    _elementwise("smooth_l1_loss", draw.numbers(2, *_IMAGE), peers.smooth_l1),
    _elementwise("huber_loss", draw.numbers(2, *_IMAGE), optax.losses.huber_loss, "optax"),
    _elementwise(
        "poisson_nll_loss",
        draw.of_one_shape(_IMAGE, draw.normal, draw.counts),
        lambda x, y: jnp.exp(x) - y * x,
    ),
    _elementwise(
        "gaussian_nll_loss",
        draw.of_one_shape(_IMAGE, draw.normal, draw.normal, draw.unit),
        peers.gaussian,
        floats=(0, 2),
    ),
    _elementwise(
        "kl_div",
        draw.of_one_shape(_IMAGE, draw.log_probabilities, draw.distribution),
        peers.kl,
    ),
    _elementwise(
        "binary_cross_entropy", draw.of_one_shape(_IMAGE, draw.unit, draw.unit), peers.bce
    ),
    _elementwise(
        "binary_cross_entropy_with_logits",
        draw.of_one_shape(_IMAGE, draw.normal, draw.unit),
        optax.losses.sigmoid_binary_cross_entropy,
        "optax",
    ),
    _elementwise(
        "soft_margin_loss",
        draw.of_one_shape(_IMAGE, draw.normal, draw.signs),
        lambda x, y: jax.nn.softplus(-y * x),
    ),
    _elementwise(
        "hinge_embedding_loss",
        draw.of_one_shape(_IMAGE, draw.normal, draw.signs),
        peers.hinge_embedding,
    ),
    _elementwise(
        "margin_ranking_loss",
        draw.of_one_shape(_IMAGE, draw.normal, draw.normal, draw.signs),
        lambda x1, x2, y: jnp.maximum(-y * (x1 - x2), 0),
        floats=(0, 1),
    ),
    _classification("cross_entropy", draw.classes(*_BATCH), peers.cross_entropy, "optax"),
    _classification(
        "cross_entropy, smoothed",
        draw.classes(*_BATCH),
        peers.smoothed,
        "optax",
        label_smoothing=0.1,
    ),
    _classification(
        "cross_entropy, probabilities",
        draw.of_one_shape(_BATCH, draw.normal, draw.distribution),
        optax.losses.softmax_cross_entropy,
        "optax",
    ),
    _classification(
        "cross_entropy, vocabulary", draw.classes(512, 50257), peers.cross_entropy, "optax"
    ),
    _classification(
        "cross_entropy, segmentation", draw.classes(8, 21, 256, 256), peers.segmentation, "optax"
    ),
    _classification(
        "nll_loss",
        draw.classes(*_BATCH, draw=draw.log_probabilities),
        peers.nll,
        function="nll_loss",
    ),
    _classification(
        "multi_margin_loss", draw.classes(*_BATCH), peers.multi_margin, function="multi_margin_loss"
    ),
    _classification(
        "multilabel_soft_margin_loss",
        draw.of_one_shape(_BATCH, draw.normal, draw.flags),
        peers.multilabel_soft_margin,
        function="multilabel_soft_margin_loss",
    ),
    _classification(
        "multilabel_margin_loss",
        draw.several_labels(*_BATCH),
        peers.multilabel_margin,
        function="multilabel_margin_loss",
    ),
    Workload(
        "cosine_embedding_loss",
        "embeddings",
        draw.pairs(*_EMBEDDING),
        "cosine_embedding_loss",
        peers.mean(peers.cosine),
        "optax",
        floats=(0, 1),
    ),
    Workload(
        "triplet_margin_loss",
        "embeddings",
        draw.numbers(3, *_EMBEDDING),
        "triplet_margin_loss",
        peers.mean(peers.triplet),
        floats=(0, 1, 2),
    ),
    *(
        Workload(
            f"ctc_loss, {door} {'x'.join(map(str, shape))}",
            "ctc",
            draw.sequences(*shape),
            "ctc_loss",
            peers.optax_ctc,
            "optax",
            ours=loss,
            theirs=peers.torch_ctc,
            cudnn=peers.cudnn_ctc,
        )
        for shape in _CTC_SHAPES
        for door, loss in {"core": peers.ctc, "functional": peers.functional_ctc}.items()
    ),
    *(
        Workload(
            name,
            "linear",
            draw.features(2048, 512, 32000),
            "linear_cross_entropy",
            peers.linear,
            "optax, all logits",
            floats=(0, 1),
            ours=ours,
            theirs=peers.torch_linear,
        )
        for name, ours in {
            "linear_cross_entropy": None,
            "linear_softmax_cross_entropy": peers.linear_each,
        }.items()
    ),
    Workload(
        "adaptive softmax",
        "linear",
        draw.adaptive(2048, 256, peers.CUTOFFS),
        "",
        peers.plain_adaptive,
        floats=(0, 2, 3, 4, 5, 6),
        ours=peers.adaptive,
        theirs=peers.torch_adaptive,
    ),
    *(
        Workload(
            f"rnnt_loss {'x'.join(map(str, shape))}",
            "rnnt",
            draw.lattices(*shape),
            "rnnt_loss",
            peers.plain_rnnt,
            ours=peers.rnnt,
            theirs=peers.torch_rnnt,
            fixed=True,
        )
        for shape in _RNNT_SHAPES
    ),
    Workload(
        f"forced_align {'x'.join(map(str, _RECORDINGS))}",
        "alignment",
        draw.recordings(*_RECORDINGS),
        "forced_align",
        peers.plain_score,
        floats=(),
        ours=peers.score,
        theirs=peers.torch_score,
        fixed=True,
    ),
    # Small enough that only the way to the compiled program and back takes time, and that XLA does
    # not hand it to another thread.
    *(
        Workload(f"{function}, a call", "calls", inputs, function, peers.total, "sum()", floats=())
        for function, inputs in {
            "mse_loss": draw.numbers(2, 4, 4),
            "cross_entropy": draw.classes(4, 4),
            "triplet_margin_loss": draw.numbers(3, 4, 4),
        }.items()
    ),
]
