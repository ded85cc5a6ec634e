"""torch.nn's loss classes: the adaptive softmax and its layers."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.core
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._base import checks
from jaxloss._base.call import public
from jaxloss.core import adaptive_softmax as core
from jaxloss.functional._torch import reduced
from jaxloss.modules.layers import Initializer, LinearLoss, torch_init

T = TypeVar("T")


class AdaptiveOutput(NamedTuple):
    """What `AdaptiveLogSoftmaxWithLoss` returns."""

    output: jax.Array  # The log probability of each target.
    loss: jax.Array  # Their negative mean.


@dataclasses.dataclass(eq=False)
class AdaptiveLogSoftmaxWithLoss(LinearLoss):
    """Adaptive softmax with its loss, as torch.nn.AdaptiveLogSoftmaxWithLoss; see
    `jaxloss.adaptive_softmax_cross_entropy`.

    Called with inputs (N, in_features) or (in_features) and targets (N) or (), it returns the log
    probabilities of the targets, `output`, and their negative mean, `loss`. The parameters are
    named, laid out and initialised as in torch: `head.weight`, `head.bias`, and for cluster i
    `tail.i.0.weight`, the projection, and `tail.i.1.weight`, the classes. In NNX these are the
    paths of the state; in Linen the names of the layers have `_` for inner dots, as shown below.

    Args:
      in_features: size of each input.
      n_classes: number of classes, which are numbered by falling frequency.
      cutoffs: the first class of each cluster, increasing, in [1, n_classes - 1].
      div_value: how many times fewer features each cluster has than what comes before it.
      head_bias: whether the head has a bias.
      dtype: of the computation, to which inputs and parameters are promoted; by default their
        own. Sums are in float32 at least.
      param_dtype: of the parameters.
      kernel_init: initializer of all weights, called with a key, a shape and `param_dtype`;
        by default torch's, uniform in ±1/√inputs. The shape is (outputs, inputs) as in torch, so
        that the fan-in is axis -1: `variance_scaling(..., in_axis=-1, out_axis=-2)`. Within Flax's
        `with_partitioning` it says how the parameter is sharded.
      bias_init: likewise for the head's bias, called with the shape (outputs,); by default torch's.
      rngs: NNX only: draws the initial parameters; Linen takes a key in `init`.

    Raises:
      ValueError: a size is too small or no integer, `cutoffs` are not increasing integers in
        [1, n_classes - 1], `div_value` is not positive, or it leaves a cluster without features. A
        call raises what `jaxloss.adaptive_softmax_cross_entropy` raises.
      TypeError: a dtype is not floating-point, or an initializer is not callable.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from flax.nnx import Rngs
      >>> from jaxloss import linen, nnx
      >>> state_dict = {  # torch's, as numpy arrays.
      ...     "head.weight": np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], np.float32),
      ...     "tail.0.0.weight": np.array([[1.0, 1.0]], np.float32),
      ...     "tail.0.1.weight": np.array([[1.0], [0.0]], np.float32),
      ... }
      >>> features, labels = jnp.array([[1.0, 2.0], [0.0, -1.0]]), jnp.array([1, 3])
      >>> loss = nnx.AdaptiveLogSoftmaxWithLoss(2, 4, [2], div_value=2.0, rngs=Rngs(0))
      >>> loss.head.weight[...] = state_dict["head.weight"]
      >>> loss.tail[0][0].weight[...] = state_dict["tail.0.0.weight"]
      >>> loss.tail[0][1].weight[...] = state_dict["tail.0.1.weight"]
      >>> output, mean = loss(features, labels)
      >>> print(output.round(4), mean.round(4), loss.predict(features))
      [-0.6803 -1.4935] 1.0869 [1 0]
      >>> loss = linen.AdaptiveLogSoftmaxWithLoss(2, 4, [2], div_value=2.0)
      >>> parameters = {}
      >>> for name, value in state_dict.items():
      ...     layer, own = name.rsplit(".", 1)
      ...     parameters.setdefault(layer.replace(".", "_"), {})[own] = value
      >>> output, mean = loss.apply({"params": parameters}, features, labels)
      >>> print(output.round(4), mean.round(4))
      [-0.6803 -1.4935] 1.0869
      >>> print(loss.apply({"params": parameters}, features, method="predict"))
      [1 0]

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.AdaptiveLogSoftmaxWithLoss.html
    """

    in_features: int
    n_classes: int
    cutoffs: Sequence[int]
    div_value: float = 4.0
    head_bias: bool = False
    _: dataclasses.KW_ONLY
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Initializer = torch_init
    bias_init: Initializer | None = None

    def _check(self) -> None:
        self._check_layers()
        checks.at_least(1, "in_features", self.in_features)
        checks.at_least(2, "n_classes", self.n_classes)
        try:
            cutoffs = tuple(map(operator.index, self.cutoffs))
        except TypeError:
            cutoffs = ()
        if not cutoffs or [0, *cutoffs, self.n_classes] != sorted({0, *cutoffs, self.n_classes}):
            rule = f"be increasing integers in [1, {self.n_classes - 1}], at least one"
            checks.fail(ValueError, "cutoffs", rule, self.cutoffs)
        self.cutoffs = cutoffs
        if not self.div_value > 0:
            checks.fail(ValueError, "div_value", "be positive", self.div_value)
        for cluster in range(len(cutoffs)):
            if self._features(cluster) < 1:
                rule = f"leave cluster {cluster} at least one of {self.in_features} features"
                checks.fail(ValueError, "div_value", rule, self.div_value)

    def _features(self, cluster: int) -> int:
        return int(self.in_features // self.div_value ** (cluster + 1))

    def _layers(self, linear: Callable[[int, int, bool], T]) -> tuple[T, list[list[T]]]:
        """The head and the tail, of linear layers (inputs, outputs, whether with a bias)."""
        head = linear(self.in_features, self.cutoffs[0] + len(self.cutoffs), self.head_bias)
        tail = []
        for cluster, (first, end) in enumerate(itertools.pairwise([*self.cutoffs, self.n_classes])):
            features = self._features(cluster)
            projection = linear(self.in_features, features, False)
            tail.append([projection, linear(features, end - first, False)])
        return head, tail

    def _parameters(self) -> dict[str, Any]:
        """Those of `jaxloss.adaptive_log_softmax`, by name."""
        layers: Any = self  # Flax's, which are made of `_layers`.
        bias = layers.head.bias
        parameters = {
            "head": layers.head.weight[...],
            "tail": [(first.weight[...], second.weight[...]) for first, second in layers.tail],
            "head_bias": None if bias is None else bias[...],
        }
        return jax.tree.map(functools.partial(self._promoted, "parameters"), parameters)

    def __call__(self, input_: ArrayLike, target_: ArrayLike) -> AdaptiveOutput:
        return _adaptive_output(self._promoted("input_", input_), target_, self._parameters())

    def log_prob(self, input: ArrayLike) -> jax.Array:
        """Log probabilities of all classes, (N, n_classes)."""
        return _adaptive_log_prob(self._promoted("input", input), self._parameters())

    def predict(self, input: ArrayLike) -> jax.Array:
        """The most probable class of each input, (N,)."""
        return jnp.argmax(self.log_prob(input), -1)


@public(
    labels=("target",),
    name="AdaptiveLogSoftmaxWithLoss",
    names={"inputs": "input_", "labels": "target_"},
)
def _adaptive_output(
    input: ArrayLike, target: ArrayLike, parameters: dict[str, Any]
) -> AdaptiveOutput:
    input = _as_torch(input, parameters)
    losses = core.adaptive_softmax_cross_entropy(input, labels=target, **parameters)
    return AdaptiveOutput(-losses, reduced(losses, "mean"))


@public(name="AdaptiveLogSoftmaxWithLoss", names={"inputs": "input"})
def _adaptive_log_prob(input: ArrayLike, parameters: dict[str, Any]) -> jax.Array:
    return core.adaptive_log_softmax(_as_torch(input, parameters), **parameters)


def _as_torch(input: ArrayLike, parameters: dict[str, Any]) -> jax.Array:
    """Inputs of the shapes that torch takes."""
    (input,) = checks.operands(inputs=input)
    features = parameters["head"].shape[-1]
    if input.ndim not in (1, 2) or input.shape[-1] != features:
        rule = f"have shape ({features},) or (N, {features})"
        checks.fail(ValueError, "inputs", rule, input.shape)
    return input
