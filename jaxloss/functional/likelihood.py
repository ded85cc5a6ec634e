"""torch's negative log likelihoods and divergences: NLL, Poisson, Gaussian, KL."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._base import checks, elementwise
from jaxloss._base.reduction import BatchReduction, Reduction
from jaxloss.core import likelihood as core
from jaxloss.functional._torch import class_targets, reduced, torch_function


@torch_function(labels=("target", "ignore_index"))
def nll_loss(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    size_average: bool | None = None,
    ignore_index: ArrayLike = -100,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """As torch.nn.functional.nll_loss, over `jaxloss.negative_log_likelihood`.

    Differs from torch: a target outside [0, C) that is not `ignore_index` gives NaN for that
    example instead of an error; when nothing takes part the mean is NaN, but its gradient is 0.

    Args:
      input: log probabilities, floating-point, (C), (N, C) or (N, C, d1, …, dK).
      target: integer array, (), (N) or (N, d1, …, dK).
      weight: one weight per class, shape (C,).
      size_average: deprecated, see `reduction`.
      ignore_index: the target of examples that do not take part.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum". The mean divides by the sum of the targets' weights.

    Returns:
      A scalar, or one loss per target for "none"; at least float32.

    Raises:
      TypeError: `input` is not floating-point or `target` not integer.
      ValueError: the shapes do not fit or the reduction is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import functional as F
      >>> log_probs = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.125, 0.5, 0.375]]))
      >>> print(F.nll_loss(log_probs, jnp.array([1, -100])).round(4))
      1.3863

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.nll_loss.html
    """
    targets = class_targets(input, target, weight, ignore_index)
    losses = core.losses_of_labels(targets.scores, targets.found, targets.classes)
    if weight is not None:
        losses = elementwise.product(targets.weights, losses)
    return reduced(losses, reduction, targets.weights)


@torch_function(static=("log_input", "full"), domain={"eps": checks.NON_NEGATIVE})
def poisson_nll_loss(
    input: ArrayLike,
    target: ArrayLike,
    log_input: bool = True,
    full: bool = False,
    *,
    size_average: bool | None = None,
    eps: ArrayLike = 1e-8,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """As torch.nn.functional.poisson_nll_loss, over `jaxloss.poisson_nll_loss`.

    Differs from torch: shapes must be equal.

    Args:
      input: floating-point array of any shape: the log of the expected count or, without
        `log_input`, the expected count.
      target: counts, in the same shape.
      log_input: whether `input` is a logarithm.
      full: whether to add Stirling's approximation of log(target!) for targets above 1.
      size_average: deprecated, see `reduction`.
      eps: keeps the logarithm finite without `log_input`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean" or "sum".

    Returns:
      A scalar, or one loss per element for "none"; at least float32.

    Raises:
      TypeError: `input` is not floating-point.
      ValueError: the shapes differ, `eps` is negative or the reduction is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import functional as F
      >>> print(F.poisson_nll_loss(jnp.array([0.0, 1.0]), jnp.array([2.0, 0.0])).round(4))
      1.8591

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.poisson_nll_loss.html
    """
    losses = core.poisson_nll_loss(input, target, log_input=log_input, full=full, eps=eps)
    return reduced(losses, reduction)


@torch_function(static=("full",), domain={"eps": checks.NON_NEGATIVE})
def gaussian_nll_loss(
    input: ArrayLike,
    target: ArrayLike,
    var: ArrayLike,
    full: bool = False,
    eps: ArrayLike = 1e-6,
    *,
    reduction: Reduction = "mean",
) -> jax.Array:
    """As torch.nn.functional.gaussian_nll_loss, over `jaxloss.gaussian_nll_loss`.

    Differs from torch: a negative variance is an error only under checkify.

    Args:
      input: the expected values, floating-point, of any shape.
      target: the observed values, in the shape of `input`, or that with one dimension equal to 1.
      var: the variances, a number or in the shape of `input`, that with one dimension equal to 1,
        or that without the last dimension.
      full: whether to add the constant ½ log 2π.
      eps: the least variance; a variance below it still has a gradient.
      reduction: "none", "mean" or "sum".

    Returns:
      A scalar, or one loss per element for "none"; at least float32.

    Raises:
      TypeError: `input` is not floating-point.
      ValueError: the shapes do not fit, `eps` is negative or the reduction is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import functional as F
      >>> input, target = jnp.array([[0.0, 1.0]]), jnp.array([[0.5, 1.0]])
      >>> print(F.gaussian_nll_loss(input, target, jnp.array([[1.0]])))
      0.0625

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.gaussian_nll_loss.html
    """
    input, target, var = checks.arrays(input=input, target=target, var=var)
    if var.ndim and var.shape == input.shape[:-1]:
        var = jnp.expand_dims(var, -1)
    for name, value in (("target", target), ("var", var)):
        if name == "var" and not value.ndim:
            continue
        sizes = zip(value.shape, input.shape, strict=False)
        different = [size for size, full_size in sizes if size != full_size]
        if value.ndim != input.ndim or different not in ([], [1]):
            rule = f"have shape {input.shape}, with at most one dimension equal to 1 instead"
            checks.fail(ValueError, name, rule, value.shape)
    return reduced(core.gaussian_nll_loss(input, target, var, full=full, eps=eps), reduction)


@torch_function(static=("log_target",))
def kl_div(
    input: ArrayLike,
    target: ArrayLike,
    *,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: BatchReduction = "mean",
    log_target: bool = False,
) -> jax.Array:
    """As torch.nn.functional.kl_div, over the terms of `jaxloss.kl_divergence`.

    "mean" divides by the number of elements, which is not the Kullback-Leibler divergence;
    "batchmean" is.

    Differs from torch: shapes must be equal, and "mean" does not warn.

    Args:
      input: log probabilities, floating-point, of any shape.
      target: probabilities in the same shape, or their logarithms with `log_target`.
      size_average: deprecated, see `reduction`.
      reduce: deprecated, see `reduction`.
      reduction: "none", "mean", "sum" or "batchmean", the sum divided by the first dimension.
      log_target: whether `target` holds logarithms.

    Returns:
      A scalar, or one term per element for "none"; at least float32.

    Raises:
      TypeError: `input` is not floating-point.
      ValueError: the shapes differ or the reduction is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import functional as F
      >>> input = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]]))
      >>> target = jnp.array([[1.0, 0.0], [0.25, 0.75]])
      >>> print(F.kl_div(input, target, reduction="batchmean").round(4))
      0.3466

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.kl_div.html
    """
    # Over no axis at all the divergence is its own terms.
    divergence = core.kl_divergence_with_log_targets if log_target else core.kl_divergence
    return reduced(divergence(input, target, axis=()), reduction, batchmean=True)
