"""torch.nn's and torchaudio's loss classes for sequences that are not aligned in time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.core
from jax.typing import ArrayLike

from jaxloss import functional as F
from jaxloss._base.reduction import Reduction
from jaxloss.modules.base import Loss


@dataclasses.dataclass(eq=False)
class CTCLoss(Loss):
    """Connectionist temporal classification, as torch.nn.CTCLoss; see
    `jaxloss.functional.ctc_loss`.

    Args:
      blank: the index of the blank.
      reduction: "none", "mean" or "sum". The mean is that of each loss divided by its target
        length.
      zero_infinity: whether infinite losses become 0.

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.CTCLoss()
      >>> log_probs = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]))
      >>> print(jnp.exp(-loss(log_probs, jnp.array([1]), 2, 1)))
      0.3125

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.CTCLoss.html
    """

    blank: int = 0
    reduction: Reduction = "mean"
    zero_infinity: bool = False

    def __call__(
        self,
        log_probs: ArrayLike,
        targets: ArrayLike,
        input_lengths: ArrayLike | Sequence[int],
        target_lengths: ArrayLike | Sequence[int],
    ) -> jax.Array:
        return F.ctc_loss(
            log_probs,
            targets,
            input_lengths,
            target_lengths,
            blank=self.blank,
            reduction=self.reduction,
            zero_infinity=self.zero_infinity,
        )


@dataclasses.dataclass(eq=False)
class RNNTLoss(Loss):
    """The transducer's loss, as torchaudio.transforms.RNNTLoss; see
    `jaxloss.functional.rnnt_loss`.

    Args:
      blank: the index of the blank; below 0 it counts from the end.
      clamp: if above 0, the bound on the magnitude of each entry in the gradient of an example's
        loss, before the reduction.
      reduction: "none", "mean" or "sum".
      fused_log_softmax: whether the inputs are logits; if not, they are log probabilities.

    Raises:
      ValueError: the reduction is unknown. A call raises what the function raises.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxloss import nnx
      >>> loss = nnx.RNNTLoss(blank=0)
      >>> logits = jnp.log(jnp.full((1, 2, 2, 2), 0.5))
      >>> print(jnp.exp(-loss(logits, jnp.array([[1]]), jnp.array([2]), jnp.array([1]))))
      0.25

    Source: https://docs.pytorch.org/audio/stable/generated/torchaudio.transforms.RNNTLoss.html
    """

    blank: int = -1
    clamp: float = -1.0
    reduction: Reduction = "mean"
    fused_log_softmax: bool = True

    def __call__(
        self,
        logits: ArrayLike,
        targets: ArrayLike,
        logit_lengths: ArrayLike | Sequence[int],
        target_lengths: ArrayLike | Sequence[int],
    ) -> jax.Array:
        return F.rnnt_loss(
            logits,
            targets,
            logit_lengths,
            target_lengths,
            blank=self.blank,
            clamp=self.clamp,
            reduction=self.reduction,
            fused_log_softmax=self.fused_log_softmax,
        )
