"""Errors at awkward points, beside those of optax and torch: `python -m benchmarks.accuracy`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxloss

Gradient = Callable[..., np.ndarray]


def jax_gradient(loss: Callable[..., jax.Array]) -> Gradient:
    return lambda *args: np.asarray(jax.jit(jax.grad(lambda *a: loss(*a).sum()))(*args))


def torch_gradient(loss: Callable[..., Any]) -> Gradient | None:
    """The gradient by the first argument; None without torch."""
    if importlib.util.find_spec("torch") is None:
        return None
    torch = __import__("torch")

    def gradient(first: np.ndarray, *others: np.ndarray) -> np.ndarray:
        leaf = torch.tensor(first, requires_grad=True)
        loss(torch, leaf, *map(torch.tensor, others)).sum().backward()
        return leaf.grad.numpy()

    return gradient


def torch_ctc(torch: Any, logits: Any, labels: Any) -> Any:
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    lengths = (torch.full((len(x),), x.shape[1]) for x in (logits, labels))
    return torch.nn.functional.ctc_loss(log_probs, labels.long(), *lengths, reduction="none")


def ctc(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return lambda logits, labels: loss(
        logits, jnp.zeros(logits.shape[:2]), labels, jnp.zeros(labels.shape)
    )


def error(gradient: np.ndarray, exact: np.ndarray) -> float:
    return float(np.max(np.abs(gradient - exact)))


def report(name: str, found: dict[str, Gradient | None], args: tuple, exact: np.ndarray) -> None:
    errors = {
        peer: "not installed" if gradient is None else f"{error(gradient(*args), exact):.1e}"
        for peer, gradient in found.items()
    }
    print(f"{name}: " + ", ".join(f"{peer} {e}" for peer, e in errors.items()), flush=True)


def main() -> None:
    print("Largest error of a float32 gradient:")
    rng = np.random.default_rng(0)

    logits, label = np.array([[17.5, 0.0]], np.float32), np.zeros(1, np.int32)
    p = 1 / (1 + np.exp(17.5))
    integer = optax.losses.softmax_cross_entropy_with_integer_labels
    report(
        f"cross entropy of logits [17.5, 0], label 0 (the gradient is {p:.1e})",
        {
            "jaxloss": jax_gradient(
                lambda x: jaxloss.softmax_cross_entropy_with_integer_labels(x, label)
            ),
            "optax": jax_gradient(lambda x: integer(x, label)),
            "torch": torch_gradient(
                lambda torch, x: torch.nn.functional.cross_entropy(x, torch.tensor([0]))
            ),
        },
        (logits,),
        np.array([[-p, p]]),
    )

    logits = rng.standard_normal((2, 5000, 30), np.float32)
    labels = rng.integers(1, 30, (2, 300), np.int32)
    with jax.enable_x64(True):
        exact = jax_gradient(ctc(optax.losses.ctc_loss))(logits.astype(np.float64), labels)
    report(
        "CTC of 5000 frames, 300 labels",
        {
            "jaxloss": jax_gradient(ctc(jaxloss.ctc_loss)),
            "optax": jax_gradient(ctc(optax.losses.ctc_loss)),
            "torch": torch_gradient(torch_ctc),
        },
        (logits, labels),
        exact,
    )

    zero, other = np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32)
    report(
        "cosine with a zero vector (the gradient is 0)",
        {
            "jaxloss": jax_gradient(lambda x: jaxloss.cosine_similarity(x, other)),
            "optax": jax_gradient(lambda x: optax.losses.cosine_similarity(x, other)),
            "torch": torch_gradient(
                lambda torch, x: torch.nn.functional.cosine_similarity(x, torch.ones(1, 3))
            ),
        },
        (zero,),
        np.zeros((1, 3)),
    )


if __name__ == "__main__":
    main()
