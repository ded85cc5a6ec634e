"""The table of losses: a row each, with inputs; every property file goes through all of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss
from jaxloss import functional as F

N, C = 6, 5  # Examples, and classes or dimensions.
Args = tuple[np.ndarray, ...]
WEIGHTS = np.array([0.5, 2.0, 1.0, 0.25, 3.0])


@dataclasses.dataclass(frozen=True, eq=False)  # Each row is itself, and keys a cache.
class Loss:
    """A loss with one configuration, as the core door and torch's door spell it.

    The inputs are (N, C) or (N,), where the class axis is at once last and second, so that the
    same arguments fit both doors; those of sequences need `as_torch`.
    """

    name: str
    sample: Callable[[np.random.Generator], Args]
    core: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    torch: str | None = None  # Where torch has the loss in this configuration.
    torch_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    floats: tuple[int, ...] = (0,)  # The arguments to differentiate.
    labels: bool = False  # Whether the second argument is class indices.
    mask: str = "elements"  # What `where` tells apart, see `where`.
    rowwise: bool = True  # Whether all arguments have a row per example.
    mixes: bool = False  # Whether an example's loss depends on the others.
    domain: Callable[..., tuple] = lambda *args: args  # Maps any finite floats to valid inputs.
    as_torch: Callable[..., tuple] = lambda *args: args  # The arguments as torch's door has them.

    def __str__(self) -> str:
        return self.name

    def losses(self, *args: Any, **more: Any) -> jax.Array:
        """Unreduced, through the core."""
        return getattr(jaxloss, self.core)(*args, **arrays(self.options), **more)

    def functional(self, *args: Any, reduction: Any = "none", **more: Any) -> jax.Array:
        """Through torch's door."""
        assert self.torch is not None
        options = arrays(self.torch_options)
        args = self.as_torch(*args)
        if self.torch in UNREDUCED:
            return getattr(F, self.torch)(*args, **options, **more)
        return getattr(F, self.torch)(*args, **options, reduction=reduction, **more)

    def doors(self) -> dict[str, Callable[..., jax.Array]]:
        """Every way to the unreduced losses."""
        return {"core": self.losses} | ({"functional": self.functional} if self.torch else {})

    def where(self, rows: Any) -> jax.Array:
        """The `where` that keeps examples: of the first argument's rank, or one for each loss.

        Beside whole rows it may tell "elements" apart, or "classes", or "entries" of an example.
        """
        rows = jnp.asarray(rows)
        columns = self.inputs()[0].ndim - 1 if self.mask != "losses" else 0
        return rows.reshape(*rows.shape, *[1] * columns)

    def inputs(self, dtype: Any = np.float32, seed: int = 0) -> tuple[jax.Array, ...]:
        """Sample inputs, exactly representable in float32; integers are left alone."""
        drawn = self.sample(np.random.default_rng(seed))
        return tuple(as_input(a, dtype) for a in drawn)


UNREDUCED = {"pairwise_distance", "cosine_similarity"}


def as_input(a: np.ndarray, dtype: Any) -> jax.Array:
    if a.dtype.kind == "f":
        return jnp.asarray(a.astype(np.float32).astype(dtype))
    return jnp.asarray(a.astype(np.int32))


def arrays(options: Mapping[str, Any]) -> dict[str, Any]:
    """Array options as float32, so that they are the same numbers in every precision."""
    return {
        name: jnp.asarray(value, jnp.float32) if isinstance(value, np.ndarray) else value
        for name, value in options.items()
    }


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _pair(rng):
    return rng.normal(size=(N, C)), rng.normal(size=(N, C))


def _triplet(rng):
    return tuple(rng.normal(size=(N, C)) for _ in range(3))


def _labelled(rng):
    return rng.normal(size=(N, C)), rng.integers(0, C, N)


def _log_probs(rng):
    return np.log(_softmax(rng.normal(size=(N, C)))), rng.integers(0, C, N)


def _distributions(rng):
    return rng.normal(size=(N, C)), _softmax(rng.normal(size=(N, C)))


def _divergence(rng):
    return np.log(_softmax(rng.normal(size=(N, C)))), _softmax(rng.normal(size=(N, C)))


def _log_divergence(rng):
    prediction, target = _divergence(rng)
    return prediction, np.log(target)


def _counts(rng):
    return rng.normal(size=(N, C)), rng.poisson(2.0, (N, C)).astype(float)


def _rates(rng):
    return rng.uniform(0.2, 3, (N, C)), rng.poisson(2.0, (N, C)).astype(float)


def _gaussians(rng):
    return *_pair(rng), rng.uniform(0.2, 3, (N, C))


def _binary(rng):
    return rng.normal(size=(N, C)), rng.uniform(size=(N, C))


def _probabilities(rng):
    return rng.uniform(0.05, 0.95, (N, C)), rng.uniform(size=(N, C))


def _signed(rng):
    return rng.normal(size=(N, C)), rng.choice([-1.0, 1.0], (N, C))


def _ranked(rng):
    return rng.normal(size=(N,)), rng.normal(size=(N,)), rng.choice([-1.0, 1.0], N)


def _similar(rng):
    return *_pair(rng), rng.choice([-1.0, 1.0], N)


def _multilabel(rng):
    labels = np.full((N, C), -1)
    for row in labels:
        count = rng.integers(0, C + 1)
        row[:count] = rng.permutation(C)[:count]
    labels[0] = [2, 2, 0, -1, 3]  # A label twice, and one that is not read.
    return rng.normal(size=(N, C)), labels


def _classified(rng):
    return rng.normal(size=(N, C)), rng.choice([0.0, 1.0], (N, C))


def _masses(rng):
    return rng.normal(size=(N, C)), rng.uniform(0.2, 3, (N, C))


def _relevant(rng):
    return rng.normal(size=(N, C)), rng.integers(0, 4, (N, C)).astype(float)


def _segmented(rng):
    """Three pixels of four classes in each example."""
    return rng.normal(size=(N, 3, 4)), np.eye(4)[rng.integers(0, 4, (N, 3))]


def _regions(rng):
    """Probabilities of a single region."""
    return rng.uniform(0.05, 0.95, (N, 3, 1)), rng.choice([0.0, 1.0], (N, 3, 1))


def _grouped(rng):
    return rng.normal(size=(N, C)), rng.permutation([0, 0, 0, 1, 1, 7])


def _features(rng):
    return rng.normal(size=(N, 3)), rng.normal(size=(C, 3)), rng.integers(0, C, N)


def _spoken(rng):
    """Sequences of up to 7 frames and 3 labels of 4 symbols, with labels twice and none at all."""
    frames, present = rng.integers(5, 8, (N, 1)), np.arange(N)[:, None] % 4
    labels = rng.integers(1, 4, (N, 3))
    labels[3] = [2, 2, 1]
    logit_paddings = (np.arange(7) >= frames).astype(int)
    return rng.normal(size=(N, 7, 4)), logit_paddings, labels, (np.arange(3) >= present).astype(int)


def _spoken_to_torch(logits, logit_paddings, labels, label_paddings):
    logits = jnp.asarray(logits)
    wide = logits.dtype if logits.dtype.itemsize > 2 else jnp.float32
    log_probs = jax.nn.log_softmax(logits.astype(wide))
    lengths = (jnp.sum(padding == 0, -1) for padding in (logit_paddings, label_paddings))
    return jnp.moveaxis(log_probs, -2, 0), labels, *lengths


def _transduced(rng):
    """Sequences of up to 4 frames and 3 labels of 4 symbols, with no label at all in some."""
    frames, present = rng.integers(2, 5, (N, 1)), np.arange(N)[:, None] % 4
    labels = rng.integers(1, 4, (N, 3))
    paddings = (np.arange(4) >= frames).astype(int), (np.arange(3) >= present).astype(int)
    return rng.normal(size=(N, 4, 4, 4)), paddings[0], labels, paddings[1]


def _transduced_to_torch(logits, logit_paddings, labels, label_paddings):
    lengths = (jnp.sum(padding == 0, -1) for padding in (logit_paddings, label_paddings))
    return logits, labels, *lengths


def _unit(x):
    """Any float into [0, 1]."""
    return jnp.abs(x) / (1 + jnp.abs(x))


def _normal(x):
    return jax.nn.log_softmax(jnp.clip(x, -1e4, 1e4))


def _sign(x):
    return jnp.where(x < 0, -1, jnp.ones((), x.dtype))


def _one_or_0(x):
    return jnp.where(x > 0, 1, jnp.zeros((), x.dtype))


def _manhattan(x, y):
    return jnp.sum(jnp.abs(x - y), axis=-1)


def _both(**same: Any) -> dict[str, Any]:
    """Options that the two doors spell alike."""
    return {"options": same, "torch_options": same}


LOSSES = [
    Loss("absolute_error", _pair, "absolute_error", torch="l1_loss", floats=(0, 1)),
    Loss("squared_error", _pair, "squared_error", torch="mse_loss", floats=(0, 1)),
    Loss("huber", _pair, "huber_loss", torch="huber_loss", **_both(delta=0.7), floats=(0, 1)),
    Loss("smooth_l1", _pair, "smooth_l1_loss", torch="smooth_l1_loss", **_both(beta=0.7)),
    Loss("smooth_l1_0", _pair, "smooth_l1_loss", torch="smooth_l1_loss", **_both(beta=0.0)),
    Loss(
        "nll",
        _log_probs,
        "negative_log_likelihood",
        torch="nll_loss",
        labels=True,
        mask="classes",
        domain=lambda x, y: (_normal(x), y),
    ),
    Loss(
        "poisson",
        _counts,
        "poisson_nll_loss",
        torch="poisson_nll_loss",
        floats=(0, 1),
        domain=lambda x, y: (jnp.minimum(x, 80), jnp.abs(y)),
    ),
    Loss(
        "poisson_rate_full",
        _rates,
        "poisson_nll_loss",
        torch="poisson_nll_loss",
        **_both(log_input=False, full=True),
        domain=lambda x, y: (jnp.abs(x), jnp.abs(y)),
    ),
    Loss(
        "poisson_rate_no_eps",
        _rates,
        "poisson_nll_loss",
        torch="poisson_nll_loss",
        **_both(log_input=False, eps=0.0),
        domain=lambda x, y: (jnp.abs(x), jnp.where(x == 0, 0, jnp.abs(y))),
    ),
    Loss(
        "gaussian",
        _gaussians,
        "gaussian_nll_loss",
        torch="gaussian_nll_loss",
        floats=(0, 1, 2),
        domain=lambda x, y, v: (x, y, jnp.abs(v)),
    ),
    Loss(
        "gaussian_full",
        _gaussians,
        "gaussian_nll_loss",
        torch="gaussian_nll_loss",
        **_both(full=True, eps=0.1),
        floats=(0, 2),
        domain=lambda x, y, v: (x, y, jnp.abs(v)),
    ),
    Loss(
        "kl",
        _divergence,
        "kl_divergence",
        floats=(0, 1),
        mask="classes",
        domain=lambda x, t: (_normal(x), jax.nn.softmax(jnp.clip(t, -1e4, 1e4))),
    ),
    Loss(
        "kl_log",
        _log_divergence,
        "kl_divergence_with_log_targets",
        floats=(0, 1),
        mask="classes",
        domain=lambda x, t: (_normal(x), _normal(t)),
    ),
    Loss(
        "kl_terms",
        _divergence,
        "kl_divergence",
        {"axis": ()},
        torch="kl_div",
        domain=lambda x, t: (_normal(x), _unit(t)),
    ),
    Loss(
        "cross_entropy",
        _labelled,
        "softmax_cross_entropy_with_integer_labels",
        torch="cross_entropy",
        labels=True,
        mask="classes",
    ),
    Loss(
        "cross_entropy_smoothed",
        _labelled,
        "softmax_cross_entropy_with_integer_labels",
        {"class_weights": WEIGHTS, "label_smoothing": 0.1},
        torch="cross_entropy",
        torch_options={"weight": WEIGHTS, "label_smoothing": 0.1},
        labels=True,
        mask="classes",
    ),
    Loss(
        "cross_entropy_z",
        _labelled,
        "softmax_cross_entropy_with_integer_labels",
        {"z_loss": 0.01, "label_smoothing": 1.0},
        labels=True,
        mask="classes",
    ),
    Loss(
        "cross_entropy_capped",
        _labelled,
        "softmax_cross_entropy_with_integer_labels",
        {"z_loss": 0.01, "softcap": 1.5},
        labels=True,
        mask="classes",
    ),
    Loss(
        "cross_entropy_probabilities",
        _distributions,
        "softmax_cross_entropy",
        torch="cross_entropy",
        floats=(0, 1),
        mask="classes",
        domain=lambda x, t: (x, _unit(t)),
    ),
    Loss(
        "cross_entropy_probabilities_smoothed",
        _distributions,
        "softmax_cross_entropy",
        {"class_weights": WEIGHTS, "label_smoothing": 0.3},
        torch="cross_entropy",
        torch_options={"weight": WEIGHTS, "label_smoothing": 0.3},
        floats=(0, 1),
        mask="classes",
        domain=lambda x, t: (x, _unit(t)),
    ),
    Loss(
        "bce_logits",
        _binary,
        "sigmoid_binary_cross_entropy",
        torch="binary_cross_entropy_with_logits",
        floats=(0, 1),
        domain=lambda x, y: (x, _unit(y)),
    ),
    Loss(
        "bce_logits_pos_weight",
        _binary,
        "sigmoid_binary_cross_entropy",
        torch="binary_cross_entropy_with_logits",
        **_both(pos_weight=WEIGHTS),
        domain=lambda x, y: (x, _unit(y)),
    ),
    Loss(
        "bce",
        _probabilities,
        "binary_cross_entropy",
        torch="binary_cross_entropy",
        floats=(0, 1),
        domain=lambda x, y: (_unit(x), _unit(y)),
    ),
    Loss(
        "soft_margin",
        _signed,
        "soft_margin_loss",
        torch="soft_margin_loss",
        domain=lambda x, y: (x, _sign(y)),
    ),
    Loss(
        "multilabel_soft_margin",
        _binary,
        "multilabel_soft_margin_loss",
        {"class_weights": WEIGHTS},
        torch="multilabel_soft_margin_loss",
        torch_options={"weight": WEIGHTS},
        mask="classes",
        domain=lambda x, y: (x, _unit(y)),
    ),
    Loss(
        "hinge_embedding",
        _signed,
        "hinge_embedding_loss",
        torch="hinge_embedding_loss",
        **_both(margin=0.6),
        domain=lambda x, y: (x, _sign(y)),
    ),
    Loss(
        "margin_ranking",
        _ranked,
        "margin_ranking_loss",
        torch="margin_ranking_loss",
        **_both(margin=0.3),
        floats=(0, 1),
        domain=lambda x1, x2, y: (x1, x2, _sign(y)),
    ),
    Loss(
        "multi_margin",
        _labelled,
        "multi_margin_loss",
        torch="multi_margin_loss",
        labels=True,
        mask="classes",
    ),
    Loss(
        "multi_margin_squared",
        _labelled,
        "multi_margin_loss",
        {"p": 2, "margin": 0.8, "class_weights": WEIGHTS},
        torch="multi_margin_loss",
        torch_options={"p": 2, "margin": 0.8, "weight": WEIGHTS},
        labels=True,
        mask="classes",
    ),
    Loss(
        "multilabel_margin",
        _multilabel,
        "multilabel_margin_loss",
        torch="multilabel_margin_loss",
        mask="rows",
    ),
    Loss(
        "linear",
        _features,
        "linear_softmax_cross_entropy",
        torch="linear_cross_entropy",
        **_both(chunk_size=2),
        floats=(0, 1),
        rowwise=False,
        mask="rows",
    ),
    Loss(
        "linear_smoothed",
        _features,
        "linear_softmax_cross_entropy",
        {
            "bias": WEIGHTS - 1,
            "class_weights": WEIGHTS,
            "label_smoothing": 0.1,
            "z_loss": 0.02,
            "chunk_size": 4,
        },
        floats=(0, 1),
        rowwise=False,
        mask="rows",
    ),
    Loss("ctc", _spoken, "ctc_loss", torch="ctc_loss", as_torch=_spoken_to_torch, mask="losses"),
    Loss(
        "rnnt",
        _transduced,
        "rnnt_loss",
        torch="rnnt_loss",
        torch_options={"blank": 0},
        as_torch=_transduced_to_torch,
        mask="losses",
    ),
    Loss(
        "cosine_similarity",
        _pair,
        "cosine_similarity",
        torch="cosine_similarity",
        floats=(0, 1),
        mask="entries",
    ),
    Loss(
        "cosine_embedding",
        _similar,
        "cosine_embedding_loss",
        torch="cosine_embedding_loss",
        **_both(margin=0.1),
        floats=(0, 1),
        mask="losses",
        domain=lambda x1, x2, y: (x1, x2, _sign(y)),
    ),
    *(
        Loss(
            f"distance_{p}",
            _pair,
            "pairwise_distance",
            torch="pairwise_distance",
            **_both(p=p),
            floats=(0, 1),
            mask="losses",
        )
        for p in (0.5, 1.0, 2.0, 3.0, float("inf"))
    ),
    Loss(
        "triplet",
        _triplet,
        "triplet_margin_loss",
        torch="triplet_margin_loss",
        floats=(0, 1, 2),
        mask="losses",
    ),
    Loss(
        "triplet_swap",
        _triplet,
        "triplet_margin_loss",
        torch="triplet_margin_loss",
        **_both(swap=True, p=3.0, margin=2.0, eps=0.0),
        floats=(0, 1, 2),
        mask="losses",
    ),
    Loss(
        "triplet_with_distance",
        _triplet,
        "triplet_margin_with_distance_loss",
        torch="triplet_margin_with_distance_loss",
        **_both(distance_function=_manhattan, swap=True),
        floats=(0, 1, 2),
        mask="losses",
    ),
    Loss("l2", _pair, "l2_loss", floats=(0, 1)),
    Loss("log_cosh", _pair, "log_cosh", floats=(0, 1)),
    Loss("hinge", _signed, "hinge_loss", domain=lambda x, y: (x, _sign(y))),
    Loss("perceptron", _signed, "perceptron_loss", domain=lambda x, y: (x, _sign(y))),
    Loss("multiclass_hinge", _labelled, "multiclass_hinge_loss", labels=True, mask="classes"),
    Loss(
        "multiclass_perceptron",
        _labelled,
        "multiclass_perceptron_loss",
        labels=True,
        mask="classes",
    ),
    Loss("sparsemax", _classified, "sparsemax_loss", domain=lambda x, y: (x, _one_or_0(y))),
    Loss(
        "multiclass_sparsemax", _labelled, "multiclass_sparsemax_loss", labels=True, mask="classes"
    ),
    Loss(
        "generalized_kl",
        _masses,
        "generalized_kl_divergence",
        floats=(0, 1),
        mask="classes",
        domain=lambda x, t: (jnp.minimum(x, 40), jnp.abs(t)),
    ),
    Loss(
        "convex_kl",
        _masses,
        "convex_kl_divergence",
        floats=(0, 1),
        mask="classes",
        domain=lambda x, t: (jnp.minimum(x, 40), jnp.abs(t)),
    ),
    Loss(
        "sigmoid_focal",
        _binary,
        "sigmoid_focal_loss",
        floats=(0, 1),
        domain=lambda x, y: (x, _unit(y)),
    ),
    Loss(
        "sigmoid_focal_weighted",
        _classified,
        "sigmoid_focal_loss",
        {"alpha": 0.25, "gamma": 0.5},
        domain=lambda x, y: (x, _one_or_0(y)),
    ),
    Loss(
        "softmax_focal",
        _labelled,
        "softmax_focal_loss_with_integer_labels",
        labels=True,
        mask="classes",
    ),
    Loss(
        "softmax_focal_weighted",
        _labelled,
        "softmax_focal_loss_with_integer_labels",
        {"class_weights": WEIGHTS, "gamma": 0.5},
        labels=True,
        mask="classes",
    ),
    Loss(
        "poly",
        _distributions,
        "poly_loss_cross_entropy",
        floats=(0, 1),
        mask="classes",
        domain=lambda x, t: (x, _unit(t)),
    ),
    Loss(
        "safe_cross_entropy",
        _distributions,
        "safe_softmax_cross_entropy",
        floats=(0, 1),
        mask="classes",
        domain=lambda x, t: (x, _unit(t)),
    ),
    Loss(
        "ranking",
        _relevant,
        "ranking_softmax_loss",
        {"reduce_fn": None, "weights": WEIGHTS},
        floats=(0, 1),
        mask="classes",
        domain=lambda x, t: (x, jnp.abs(t)),
    ),
    Loss("cosine_distance", _pair, "cosine_distance", floats=(0, 1), mask="entries"),
    Loss(
        "dice",
        _segmented,
        "dice_loss",
        {"axis": -2},
        floats=(0, 1),
        mask="entries",
        domain=lambda x, t: (x, _unit(t)),
    ),
    Loss(
        "tversky",
        _segmented,
        "tversky_loss",
        {
            "axis": -2,
            "alpha": 0.3,
            "beta": 0.7,
            "smooth": 0.0,
            "class_weights": WEIGHTS[:4],
            "ignore_background": True,
            "reduction": "sum",
        },
        mask="entries",
        domain=lambda x, t: (x, _unit(t)),
    ),
    Loss(
        "binary_dice",
        _regions,
        "binary_dice_loss",
        {"apply_sigmoid": False},
        mixes=True,  # Alone an example is no batch.
        mask="entries",
        domain=lambda x, t: (_unit(x), _unit(t)),
    ),
    Loss(
        "generalized_dice",
        _segmented,
        "multiclass_generalized_dice_loss",
        {"reduction": "none"},
        mixes=True,
        mask="entries",
        domain=lambda x, t: (x, _unit(t)),
    ),
    Loss("ntxent", _grouped, "ntxent_per_example", {"temperature": 0.5}, mask="losses", mixes=True),
    Loss(
        "info_nce",
        _pair,
        "info_nce_loss",
        {"temperature": 0.5, "chunk_size": 4},
        floats=(0, 1),
        mask="losses",
        mixes=True,
    ),
    Loss(
        "sigmoid_contrastive",
        _pair,
        "sigmoid_contrastive_loss",
        {"scale": 2.0, "bias": -1.5, "chunk_size": 4},
        floats=(0, 1),
        mask="losses",
        mixes=True,
    ),
    Loss(
        "supervised_contrastive",
        _grouped,
        "supervised_contrastive_loss",
        {"temperature": 0.5, "chunk_size": 4},
        mask="losses",
        mixes=True,
    ),
]

BY_NAME = {loss.name: loss for loss in LOSSES}
ROWWISE = [loss for loss in LOSSES if loss.rowwise and not loss.mixes]
DOORS = [(loss, door) for loss in LOSSES for door in loss.doors()]
DOOR_IDS = [f"{loss}-{door}" for loss, door in DOORS]
# Through torch's door where there is one, and through the core where that takes other inputs.
OUTERMOST = [
    *((loss, list(loss.doors())[-1]) for loss in LOSSES),
    *((loss, "core") for loss in LOSSES if loss.as_torch is not Loss.as_torch),
]
OUTERMOST_IDS = [f"{loss}-{door}" for loss, door in OUTERMOST]
LABELLED = [(loss, door) for loss, door in DOORS if loss.labels]
CLASSES_MASKED = [loss for loss in LOSSES if loss.mask == "classes"]


def scalar(loss: Loss, door: str, args: tuple, positions: tuple[int, ...] | None = None):
    """The sum of the losses as a function of its float arguments alone, and those arguments."""
    positions = loss.floats if positions is None else positions
    call = loss.doors()[door]

    def total(*floats):
        return call(*replaced(args, positions, floats)).sum()

    return total, tuple(args[p] for p in positions)


def replaced(args: Any, positions: Any, values: Any) -> list:
    """The arguments, with these values at these positions."""
    full = list(args)
    for position, value in zip(positions, values, strict=True):
        full[position] = value
    return full


def losses_and_gradients(loss: Loss, args: Any, wrap: Callable = lambda f: f) -> tuple:
    """Through the core: the losses, and the gradients of their sum by each of the row's floats.

    What is differentiated is wrapped first, in `jax.checkpoint` for one.
    """

    @wrap
    def total(*floats):
        losses = loss.losses(*replaced(args, loss.floats, floats))
        return losses.sum(), losses

    floats = [args[p] for p in loss.floats]
    gradients, losses = jax.grad(total, range(len(floats)), has_aux=True)(*floats)
    return losses, gradients


@functools.cache
def gradients(loss: Loss) -> Callable[[tuple], tuple[jax.Array, ...]]:
    """Those of the sum by each of the row's floats, as one program that many properties share."""

    @jax.jit
    def run(args):
        f, floats = scalar(loss, "core", args)
        return jax.grad(f, range(len(floats)))(*floats)

    return run


def prepared(loss: Loss, door: str, seed: int = 1):
    """The function of a row's door, its arguments in the order of that door, and its options."""
    args = loss.inputs(seed=seed)
    if door == "core":
        return getattr(jaxloss, loss.core), args, dict(loss.options)
    options = dict(loss.torch_options)
    if loss.torch not in UNREDUCED:
        options["reduction"] = "none"
    return getattr(F, str(loss.torch)), loss.as_torch(*args), options
