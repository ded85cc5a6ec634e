"""Calls that jaxloss.functional and torch.nn.functional should answer alike, with their inputs."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

INF = float("inf")


@dataclasses.dataclass(frozen=True)
class Call:
    """One call: floats are float64 numbers that float32 can hold, labels int64."""

    name: str
    function: str
    args: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def differentiable(self) -> tuple[int, ...]:
        """Positions of the arguments to differentiate."""
        leading = range(DIFFERENTIABLE.get(self.function, 1))
        return tuple(
            p
            for p in leading
            if isinstance(self.args[p], np.ndarray) and self.args[p].dtype.kind in "fc"
        )


# How many leading arguments to differentiate, where it is more than one.
DIFFERENTIABLE = {
    "l1_loss": 2,
    "mse_loss": 2,
    "smooth_l1_loss": 2,
    "huber_loss": 2,
    "poisson_nll_loss": 2,
    "gaussian_nll_loss": 3,
    "kl_div": 2,
    "cross_entropy": 2,
    "binary_cross_entropy": 2,
    "binary_cross_entropy_with_logits": 2,
    "margin_ranking_loss": 2,
    "cosine_embedding_loss": 2,
    "cosine_similarity": 2,
    "pairwise_distance": 2,
    "triplet_margin_loss": 3,
    "triplet_margin_with_distance_loss": 3,
    "linear_cross_entropy": 2,
}

# Functions of log probabilities whose first argument is given as logits: torch's gradient is that
# behind a log_softmax.
FROM_LOGITS = {"ctc_loss"}


def calls(seed: int = 0) -> list[Call]:
    """Every call, with inputs of their own for every seed."""
    rng = np.random.default_rng(seed)
    found: list[Call] = []

    def normal(*shape):
        return rng.normal(size=shape)

    def uniform(*shape, low=0.0, high=1.0):
        return rng.uniform(low, high, size=shape)

    def signs(*shape):
        return rng.choice([-1.0, 1.0], shape)

    def softmax(x, axis=-1):
        p = np.exp(x)
        return p / p.sum(axis, keepdims=True)

    def representable(a):
        """The array that both precisions share."""
        a = np.asarray(a)
        narrow = {"f": np.float32, "c": np.complex64}.get(a.dtype.kind, a.dtype)
        return a.astype(narrow).astype(a.dtype)

    def add(label, function, *args, reductions=("none", "mean", "sum"), **options):
        arrays = tuple(a if type(a) is float else representable(a) for a in args)
        options = {
            k: representable(v) if isinstance(v, np.ndarray) else v for k, v in options.items()
        }
        for reduction in reductions:
            kept = dict(options) if reduction is None else dict(options, reduction=reduction)
            name = "-".join(filter(None, (function, label, reduction)))
            found.append(Call(name, function, arrays, kept))

    # Elementwise.
    shapes = {"scalar": (), "vector": (4,), "cube": (2, 3, 4), "empty": (0, 3)}
    for function in ("l1_loss", "mse_loss", "smooth_l1_loss", "huber_loss"):
        for label, shape in shapes.items():
            add(label, function, normal(*shape), normal(*shape))
    tied = normal(3, 4)
    for function in ("l1_loss", "mse_loss", "huber_loss"):
        add("weight", function, normal(3, 4), normal(3, 4), weight=uniform(3, 4))
    add("tie", "l1_loss", tied, tied.copy())
    add("complex", "l1_loss", normal(3) + 1j * normal(3), normal(3) + 1j * normal(3))
    add("complex-tie", "l1_loss", np.zeros(2) + 0j, np.array([0j, 3 - 4j]))
    for beta in (0.0, 0.5, 2.0):
        add(f"beta{beta}", "smooth_l1_loss", 2 * normal(3, 4), normal(3, 4), beta=beta)
    for delta in (0.5, 2.0):
        add(f"delta{delta}", "huber_loss", 2 * normal(3, 4), normal(3, 4), delta=delta)
    add("kink", "huber_loss", np.array([1.0, -1.0, 0.0]), np.zeros(3))
    add("kink", "smooth_l1_loss", np.array([1.0, -1.0, 0.0]), np.zeros(3))

    # Likelihoods.
    counts = np.array([[0.0, 1.0, 2.5, 7.0], [3.0, 0.0, 1.0, 2.0]])
    for log_input, full in itertools.product((True, False), repeat=2):
        x = normal(2, 4) if log_input else uniform(2, 4, low=0.1, high=3)
        add(
            f"log{log_input:d}-full{full:d}",
            "poisson_nll_loss",
            x,
            counts,
            log_input=log_input,
            full=full,
        )
    add("eps", "poisson_nll_loss", uniform(2, 4), counts, log_input=False, eps=0.5)
    variances = {
        "full": uniform(2, 3, 4, low=0.2, high=2),
        "last1": uniform(2, 3, 1, low=0.2, high=2),
        "middle1": uniform(2, 1, 4, low=0.2, high=2),
        "fewer": uniform(2, 3, low=0.2, high=2),
        "clamped": np.array([0.0, 1e-7, 1e-6, 1.0])[None, None] * np.ones((2, 3, 1)),
    }
    for label, var in variances.items():
        add(label, "gaussian_nll_loss", normal(2, 3, 4), normal(2, 3, 4), var)
    add("float", "gaussian_nll_loss", normal(2, 3), normal(2, 3), 0.5)
    add("constant", "gaussian_nll_loss", normal(2, 3), normal(2, 3), uniform(2, 3), full=True)
    add("eps", "gaussian_nll_loss", normal(2, 3), normal(2, 3), uniform(2, 3), eps=0.5)
    add("target1", "gaussian_nll_loss", normal(2, 3), normal(2, 1), uniform(2, 3))
    all_four = ("none", "mean", "sum", "batchmean")
    log_p, p = np.log(softmax(normal(3, 5))), softmax(normal(3, 5))
    p_with_zeros = np.where(np.arange(5) == 2, 0.0, p)
    add(None, "kl_div", log_p, p, reductions=all_four)
    add("zeros", "kl_div", log_p, p_with_zeros, reductions=all_four)
    add("log", "kl_div", log_p, np.log(p), reductions=all_four, log_target=True)
    add("cube", "kl_div", normal(2, 3, 4), softmax(normal(2, 3, 4)), reductions=all_four)

    # Class indices.
    weight = np.array([0.5, 2.0, 1.0, 0.25, 3.0])
    batches = {"unbatched": (), "batch": (4,), "sequence": (3, 2), "image": (2, 3, 2)}
    for function, (label, shape) in itertools.product(
        ("nll_loss", "cross_entropy"), batches.items()
    ):
        x = normal(*shape[:1], 5, *shape[1:])
        if function == "nll_loss":
            x = np.log(softmax(x, axis=1 if shape else 0))
        y = rng.integers(0, 5, shape)
        add(label, function, x, y)
        add(f"{label}-weight", function, x, y, weight=weight)
        if shape:
            y = y.copy()
            y.flat[0] = -100
            add(f"{label}-ignore", function, x, y, weight=weight)
            add(f"{label}-ignore1", function, x, np.where(y < 0, 1, y), ignore_index=1)
    x, y = normal(4, 5), rng.integers(0, 5, 4)
    for function in ("nll_loss", "cross_entropy"):
        add("all-ignored", function, x, np.full(4, -100))
        add("weight0", function, x, y, weight=np.zeros(5))
        add("empty", function, np.zeros((0, 5)), np.zeros(0, np.int64))
        add("one-class", function, normal(4, 1), np.zeros(4, np.int64))
    for smoothing in (0.1, 1.0):
        add(f"smooth{smoothing}", "cross_entropy", x, y, label_smoothing=smoothing)
        add(
            f"smooth{smoothing}-weight",
            "cross_entropy",
            x,
            np.where(y == y[0], -100, y),
            weight=weight,
            label_smoothing=smoothing,
        )
        add(
            f"probabilities-smooth{smoothing}",
            "cross_entropy",
            x,
            softmax(normal(4, 5)),
            weight=weight,
            label_smoothing=smoothing,
        )
    add("probabilities", "cross_entropy", x, softmax(normal(4, 5)))
    add("probabilities-one", "cross_entropy", normal(5), softmax(normal(5)))
    image = softmax(normal(2, 5, 3, 2), axis=1)
    add("probabilities-image", "cross_entropy", normal(2, 5, 3, 2), image, weight=weight)
    add("impossible", "cross_entropy", np.array([[-INF, 0.0, 1.0]] * 2), np.array([1, 2]))
    for label, shape in (("unbatched", ()), ("batch", (4,))):
        x, y = normal(*shape, 5), rng.integers(0, 5, shape)
        for p_, w in itertools.product((1, 2), (None, weight)):
            add(
                f"{label}-p{p_}{'' if w is None else '-weight'}",
                "multi_margin_loss",
                x,
                y,
                p=p_,
                margin=0.75,
                weight=w,
            )
        labels = np.full((*shape, 5), -1)
        labels[..., :3] = [2, 0, 2]
        labels[..., 4] = 3
        add(label, "multilabel_margin_loss", x, labels)
        add(f"{label}-none", "multilabel_margin_loss", x, np.full((*shape, 5), -1))
    add("kink", "multi_margin_loss", np.array([[1.0, 0.0, 2.0]]), np.array([0]))
    add("kink", "multilabel_margin_loss", np.array([[1.0, 0.0, 2.0]]), np.array([[0, -1, -1]]))

    # Yes or no.
    for label, shape in (("vector", (4,)), ("matrix", (3, 4))):
        p_, y = uniform(*shape, low=0.02, high=0.98), uniform(*shape)
        add(label, "binary_cross_entropy", p_, y)
        add(f"{label}-weight", "binary_cross_entropy", p_, y, weight=uniform(4))
        add(label, "binary_cross_entropy_with_logits", 3 * normal(*shape), y)
        add(
            f"{label}-weight",
            "binary_cross_entropy_with_logits",
            3 * normal(*shape),
            y,
            weight=uniform(4),
            pos_weight=uniform(4, high=3),
        )
        add(label, "soft_margin_loss", 3 * normal(*shape), signs(*shape))
        add(label, "multilabel_soft_margin_loss", normal(*shape), np.round(y))
        add(
            f"{label}-weight",
            "multilabel_soft_margin_loss",
            normal(*shape),
            np.round(y),
            weight=uniform(4),
        )
        add(label, "hinge_embedding_loss", normal(*shape), signs(*shape), margin=0.5)
    certain = np.array([0.0, 1.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0, 1.0])
    add("certain", "binary_cross_entropy", *certain)
    confident = np.array([0.0, -0.0, 40.0, -40.0]), np.array([1.0, 0.0, 0.0, 1.0])
    add("confident", "binary_cross_entropy_with_logits", *confident)
    add(
        "pos_weight-column",
        "binary_cross_entropy_with_logits",
        normal(2, 3, 4),
        uniform(2, 3, 4),
        pos_weight=uniform(3, 1),
    )
    add("kink", "hinge_embedding_loss", np.array([1.0, 1.0]), np.array([1.0, -1.0]))
    add("other-targets", "hinge_embedding_loss", normal(4), np.array([0.0, 1.0, -1.0, 2.0]))
    add("other-targets", "soft_margin_loss", normal(4), np.array([0.0, 1.0, -1.0, 2.0]))

    # Pairs and triplets.
    for label, shape in (("scalar", ()), ("vector", (4,)), ("matrix", (3, 4))):
        add(label, "margin_ranking_loss", normal(*shape), normal(*shape), signs(*shape), margin=0.3)
    add("kink", "margin_ranking_loss", np.array([1.0]), np.array([1.0]), np.array([1.0]))
    for label, shape in (("one", (4,)), ("batch", (3, 4))):
        x1, x2, x3 = normal(*shape), normal(*shape), normal(*shape)
        add(label, "cosine_embedding_loss", x1, x2, signs(*shape[:-1]), margin=0.2)
        add(f"{label}-zero", "cosine_embedding_loss", x1, x2, np.zeros(shape[:-1]))
        add(label, "triplet_margin_with_distance_loss", x1, x2, x3, swap=True, margin=2.0)
        # What is done with the norms is the same of every p.
        for p_, swap in itertools.product((1, 1.5, 2, 3), (False, True)):
            add(
                f"{label}-p{p_}-swap{swap:d}",
                "triplet_margin_loss",
                x1,
                x2,
                x3,
                p=p_,
                swap=swap,
                margin=2.0,
                reductions=("none", "mean", "sum") if p_ == 2 else ("none",),
            )
        for p_, keepdim in (*((p, False) for p in (0.5, 1.0, 1.5, 2.0, 3.0, INF)), (2.0, True)):
            add(
                f"{label}-p{p_}-keepdim{keepdim:d}",
                "pairwise_distance",
                x1,
                x2,
                p=p_,
                keepdim=keepdim,
                reductions=(None,),
            )
    add("eps0", "pairwise_distance", normal(3, 4), normal(3, 4), eps=0.0, reductions=(None,))
    add("zero", "pairwise_distance", tied, tied.copy(), eps=0.0, reductions=(None,))
    for dim in (0, 1, -1):
        add(
            f"dim{dim}",
            "cosine_similarity",
            normal(2, 3, 4),
            normal(2, 3, 4),
            dim=dim,
            reductions=(None,),
        )
    add("broadcast", "cosine_similarity", normal(2, 3, 1), normal(1, 3, 4), reductions=(None,))
    add("eps", "cosine_similarity", normal(2, 3), 0.1 * normal(2, 3), eps=2.0, reductions=(None,))

    # Ties, shapes and dtypes that seldom meet; the reductions are as above.
    each = {"reductions": ("none",)}
    a, b = normal(2, 4), normal(2, 4)
    for p_ in (0.5, 1.0, 1.5, 2.0, 3.0, 20.0, INF):
        equal_sizes = np.array([[1.0, -1.0, 1.0, 0.0]])
        add(
            f"tie-p{p_}",
            "pairwise_distance",
            equal_sizes,
            0 * a[:1],
            p=p_,
            eps=0.0,
            reductions=(None,),
        )
        add(f"same-p{p_}", "pairwise_distance", a, a, p=p_, eps=0.0, reductions=(None,))
    for p_ in (1, 2, 3, 20, INF):
        add(f"swap-tie-p{p_}", "triplet_margin_loss", a, a, b, p=p_, swap=True, margin=3.0, **each)
        add(f"same-p{p_}", "triplet_margin_loss", a, a, a, p=p_, **each)
    right_triangle = np.zeros((1, 2)), np.array([[3.0, 4.0]]), np.array([[6.0, 0.0]])
    add("kink", "triplet_margin_loss", *right_triangle, eps=0.0, **each)
    for swap in (False, True):
        add(
            f"manhattan-swap{swap:d}",
            "triplet_margin_with_distance_loss",
            *(a, b, normal(2, 4)),
            distance_function=lambda u, v: abs(u - v).sum(-1),
            swap=swap,
            **each,
        )
    add("kink", "cosine_embedding_loss", [[1.0, 0.0]], [[0.0, 1.0]], [-1.0], **each)
    add("tie", "margin_ranking_loss", [1.0, 1.0, 2.0], np.ones(3), [1.0, -1.0, -1.0], **each)
    for p_ in (1, 2):
        add(f"tie-p{p_}", "multi_margin_loss", np.ones((1, 3)), [0], p=p_, margin=0.0, **each)
    for beta in (0.0, 0.5):
        add(f"tie-beta{beta}", "smooth_l1_loss", a, a, beta=beta, **each)
    add("square-fewer", "gaussian_nll_loss", normal(3, 3), normal(3, 3), uniform(3), **each)
    add("target-middle1", "gaussian_nll_loss", normal(2, 3, 4), normal(2, 1, 4), 0.5, **each)
    add("zero", "gaussian_nll_loss", a, b, 0.0, **each)
    for smoothing in (0.0, 0.1, 1.0):
        for label, shape in (("unbatched", (5,)), ("image", (2, 5, 3, 2))):
            y = rng.integers(0, 5, shape[:1] * (len(shape) > 1) + shape[2:])
            x, options = normal(*shape), {"weight": weight, "label_smoothing": smoothing}
            add(f"{label}-smooth{smoothing}", "cross_entropy", x, y, ignore_index=3, **options)
            soft = softmax(normal(*shape), axis=min(1, len(shape) - 1))
            add(f"{label}-soft-smooth{smoothing}", "cross_entropy", x, soft, **options)
    impossible = np.array([[-INF, 0.0, 1.0]])
    add("infinite", "cross_entropy", impossible, [0], **each)
    add("infinite", "nll_loss", impossible, [0], **each)
    add("all-ignored-nan", "nll_loss", np.full((1, 3), np.nan), [-100], **each)
    columns = {"weight": uniform(3, 1), "pos_weight": uniform(3, 4, high=3)}
    add("columns", "binary_cross_entropy_with_logits", normal(3, 4), uniform(3, 4), **columns)
    add("columns", "binary_cross_entropy", uniform(3, 4), uniform(3, 4), weight=uniform(3, 1))
    add("cube", "multilabel_soft_margin_loss", normal(2, 3, 4), uniform(2, 3, 4))
    ones = np.array([1, -1, -1, 1])
    add("int", "hinge_embedding_loss", normal(4), ones)
    add("int", "soft_margin_loss", normal(4), ones)
    add("int", "margin_ranking_loss", normal(4), normal(4), ones)
    add("int", "cosine_embedding_loss", normal(4, 3), normal(4, 3), ones)
    add("int", "poisson_nll_loss", normal(4), ones + 1)
    # Not for the two multi-margin losses: their empty sum and mean are uninitialised memory.
    none, pair = np.zeros(0), np.zeros((2, 0, 4))
    for function in ("poisson_nll_loss", "kl_div", "soft_margin_loss", "hinge_embedding_loss"):
        add("scalar", function, normal(), 1.0 * np.ones(()))
        add("empty", function, none, none)
    for function in ("binary_cross_entropy", "binary_cross_entropy_with_logits"):
        add("scalar", function, uniform(), uniform())
        add("empty", function, none, none)
    add("empty", "gaussian_nll_loss", *pair, 1.0)
    add("empty", "multilabel_soft_margin_loss", *pair)
    add("empty", "margin_ranking_loss", none, none, none)
    add("empty", "cosine_embedding_loss", *pair, none)
    add("empty", "triplet_margin_loss", *pair, pair[0])

    # Connectionist temporal classification.
    lengths = np.array([9, 7, 9]), np.array([4, 3, 0])
    spoken = rng.integers(1, 5, (3, 4))
    in_line = np.concatenate([row[:n] for row, n in zip(spoken, lengths[1], strict=True)])
    add("padded", "ctc_loss", normal(9, 3, 5), spoken, *lengths)
    one = {"reductions": ("none",)}
    add("in-line", "ctc_loss", normal(9, 3, 5), in_line, *lengths, reductions=("mean",))
    add("unbatched", "ctc_loss", normal(9, 5), spoken[0], np.array(9), np.array(4), **one)
    add("blank", "ctc_loss", normal(9, 3, 5), spoken - 1, *lengths, blank=4, **one)
    ones = np.ones((2, 4)).astype(int)
    add("repeated", "ctc_loss", normal(9, 2, 5), ones, [9, 7], [4, 4], **one)
    short = normal(5, 2, 5), np.array([[1, 1, 1, 1], [1, 2, 3, 3]]), [5, 5], [4, 3]
    add("infinite", "ctc_loss", *short, **one)
    add("zero-infinity", "ctc_loss", *short, zero_infinity=True, reductions=("mean",))

    # Linear cross entropy.
    features, table, per_class = normal(6, 4), normal(5, 4), uniform(5)
    indices = np.array([0, 4, -100, 2, 2, 1])
    weighted = {"linear_bias": normal(5), "weight": per_class, "label_smoothing": 0.2}
    add("plain", "linear_cross_entropy", features, table, indices)
    add("weighted", "linear_cross_entropy", features, table, indices, **weighted)
    add("ignored", "linear_cross_entropy", features, table, np.abs(indices) % 5, ignore_index=2)
    add(
        "probabilities",
        "linear_cross_entropy",
        features,
        table,
        rng.dirichlet(np.ones(5), 6),
        **weighted,
    )
    add("unbatched", "linear_cross_entropy", features[0], table, np.array(3))
    places = normal(6, 4), normal(5, 2, 3, 4), rng.integers(0, 5, (6, 2, 3))
    add("places", "linear_cross_entropy", *places, linear_bias=normal(5, 2, 3), weight=per_class)
    return found


def cotangent(value: np.ndarray) -> np.ndarray:
    """What a value is multiplied with before it is summed and differentiated."""
    return np.cos(np.arange(value.size)).reshape(value.shape)


# Calls whose gradients differ on purpose, and why.
DIFFERENT_GRADIENTS = {
    "l1_loss-complex": "JAX's gradient of a complex argument is the conjugate of torch's",
    "binary_cross_entropy-certain": "the derivative is ±1 where torch has 0",
    "cosine_similarity-eps": "torch differentiates the norm where the clamp holds it constant",
    "all-ignored": "0 where torch has NaN",
    "weight0": "0 where torch has NaN",
    "empty": "there is none",
}
