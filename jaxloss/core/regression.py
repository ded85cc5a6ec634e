"""Distances of a prediction from its target: absolute, squared, Huber, smooth L1, log-cosh."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._base import checks, elementwise, norms, xla
from jaxloss._base.call import public


def _loss_of(
    loss: Callable[..., jax.Array],
    predictions: ArrayLike,
    targets: ArrayLike | None,
    where: ArrayLike | None,
    *,
    complex_too: bool = False,
    **hyper_parameters: ArrayLike,
) -> jax.Array:
    """The loss of the checked arguments, and 0 for what does not take part."""
    given = {"predictions": predictions} | ({} if targets is None else {"targets": targets})
    arrays = checks.arrays(**given, complex_too=complex_too)
    checks.same_shape(**dict(zip(given, arrays, strict=True)))
    x = arrays[0]
    where = checks.mask(where, "predictions", x)
    numbers = [checks.hyper_parameter(name, y, x) for name, y in hyper_parameters.items()]
    arrays = [elementwise.masked(where, y) for y in arrays]
    if targets is None:
        arrays.append(jnp.zeros((), x.dtype))
    numbers = [elementwise.masked(where, y, 1) for y in numbers]
    return elementwise.masked(where, loss(*arrays, *numbers))


def _of_error(
    value: Callable[..., jax.Array], slopes: Callable[..., tuple[jax.Array, ...]]
) -> Callable[..., jax.Array]:
    """A loss of x - y and of hyper-parameters, given its value and its derivatives in all these."""

    @jax.custom_jvp
    def loss(x: jax.Array, y: jax.Array, *hyper_parameters: jax.Array) -> jax.Array:
        return value(x - y, *hyper_parameters)

    def _jvp(primals, tangents):
        # Autodiff would keep arrays for the backward pass, which needs the error alone; and the
        # error, written as in the value, would be stored for both.
        x, y, *hyper_parameters = primals
        x_dot, y_dot, *dots = tangents
        by_error, *others = slopes(xla.recomputed(x) - y, *hyper_parameters)
        terms = [(by_error, x_dot), (-by_error, y_dot), *zip(others, dots, strict=True)]
        return loss(*primals), elementwise.along(x, *terms)

    loss.defjvp(_jvp, symbolic_zeros=True)
    return loss


_real_absolute = _of_error(norms.absolute, lambda error: (jnp.sign(error),))


def _absolute(x: jax.Array, y: jax.Array) -> jax.Array:
    return norms.absolute(x - y) if jnp.iscomplexobj(x) else _real_absolute(x, y)


_squared = _of_error(jnp.square, lambda error: (2 * error,))
_half_squared = _of_error(lambda error: 0.5 * jnp.square(error), lambda error: (error,))


def _huber_value(error: jax.Array, delta: jax.Array) -> jax.Array:
    size = norms.absolute(error)
    half = jnp.minimum(0.5 * size, 0.5 * delta)
    return 2 * (half * (size - half))


def _huber_slopes(error: jax.Array, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
    size = norms.absolute(error)
    small = size < delta
    return jnp.where(small, error, delta * jnp.sign(error)), jnp.where(small, 0, size - delta)


_huber = _of_error(_huber_value, _huber_slopes)


def _smooth_l1_value(error: jax.Array, beta: jax.Array) -> jax.Array:
    size = norms.absolute(error)
    limits = jnp.finfo(beta.dtype)
    beta = jnp.maximum(beta, float(limits.tiny))
    half = jnp.minimum(0.5 * size / beta, 0.5)
    return 2 * (half * (size - half * jnp.minimum(beta, float(limits.max))))


def _smooth_l1_slopes(error: jax.Array, beta: jax.Array) -> tuple[jax.Array, jax.Array]:
    small = norms.absolute(error) < beta
    ratio = jnp.where(small, error, 0) / jnp.where(beta == 0, 1, beta)
    by_error = jnp.where(small, ratio, jnp.sign(error))
    return by_error, -0.5 * jnp.where(small, jnp.square(ratio), 1)


_smooth_l1 = _of_error(_smooth_l1_value, _smooth_l1_slopes)


def _log_cosh_value(error: jax.Array) -> jax.Array:
    # log(1 + 2 sinh²(e/2)), for the usual log(exp(e) + exp(-e)) - log 2 cancels near 0.
    size = norms.absolute(error)
    less = jnp.expm1(-size)
    near = jnp.log1p(0.5 * jnp.square(less) / jnp.maximum(1 + less, 0.25))
    return jnp.where(size < 1, near, size + (jnp.log1p(jnp.square(1 + less)) - math.log(2)))


_log_cosh = _of_error(_log_cosh_value, lambda error: (jnp.tanh(error),))


@public()
def absolute_error(
    predictions: ArrayLike, targets: ArrayLike | None = None, *, where: ArrayLike | None = None
) -> jax.Array:
    """Absolute error.

    loss = |x - y|, with derivative 0 at x = y.

    Args:
      predictions: floating-point or complex array of any shape.
      targets: array of the same shape; 0 if left out.
      where: boolean, of the rank of `predictions` and broadcastable to it: what takes part. The
        rest may hold anything, in every argument: its loss and gradient are 0.

    Returns:
      One real loss per element, in the shape of `predictions`; at least float32.

    Raises:
      TypeError: `predictions` is neither floating-point nor complex.
      ValueError: the shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> print(jaxloss.absolute_error(jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 0.0, 3.5])))
      [0.  2.  0.5]

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.L1Loss.html
    """
    return _loss_of(_absolute, predictions, targets, where, complex_too=True)


@public()
def squared_error(
    predictions: ArrayLike, targets: ArrayLike | None = None, *, where: ArrayLike | None = None
) -> jax.Array:
    """Squared error.

    loss = (x - y)², without a factor of one half.

    Args:
      predictions: floating-point array of any shape.
      targets: array of the same shape; 0 if left out.
      where: boolean, of the rank of `predictions` and broadcastable to it: what takes part. The
        rest may hold anything, in every argument: its loss and gradient are 0.

    Returns:
      One loss per element, in the shape of `predictions`; at least float32.

    Raises:
      TypeError: `predictions` is not floating-point.
      ValueError: the shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> print(jaxloss.squared_error(jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 0.0, 3.5])))
      [0.   4.   0.25]

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.MSELoss.html
    """
    return _loss_of(_squared, predictions, targets, where)


@public(domain={"delta": checks.POSITIVE})
def huber_loss(
    predictions: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    delta: ArrayLike = 1.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Huber loss: squared near the target, absolute far from it.

    loss = ½ e² if |e| < δ, else δ (|e| - ½ δ), with e = x - y. Its derivative is e clipped to ±δ.

    Args:
      predictions: floating-point array of any shape.
      targets: array of the same shape; 0 if left out.
      delta: δ > 0, in the unit of `predictions`; a number, or one for each element.
      where: boolean, of the rank of `predictions` and broadcastable to it: what takes part. The
        rest may hold anything, in every argument: its loss and gradient are 0.

    Returns:
      One loss per element, in the shape of `predictions`; at least float32.

    Raises:
      TypeError: `predictions` is not floating-point.
      ValueError: the shapes differ, or `delta` is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> print(jaxloss.huber_loss(jnp.array([0.0, 0.5, 3.0]), jnp.zeros(3), delta=1.0))
      [0.    0.125 2.5  ]

    Source: Huber, Robust estimation of a location parameter (1964).
    """
    return _loss_of(_huber, predictions, targets, where, delta=delta)


@public(domain={"beta": checks.NON_NEGATIVE})
def smooth_l1_loss(
    predictions: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    beta: ArrayLike = 1.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Smooth L1 loss: the Huber loss divided by its threshold.

    loss = ½ e²/β if |e| < β, else |e| - ½ β, with e = x - y. For β = 0 it is the absolute error.

    Args:
      predictions: floating-point array of any shape.
      targets: array of the same shape; 0 if left out.
      beta: β >= 0, in the unit of `predictions`; a number, or one for each element.
      where: boolean, of the rank of `predictions` and broadcastable to it: what takes part. The
        rest may hold anything, in every argument: its loss and gradient are 0.

    Returns:
      One loss per element, in the shape of `predictions`; at least float32.

    Raises:
      TypeError: `predictions` is not floating-point.
      ValueError: the shapes differ, or `beta` is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> print(jaxloss.smooth_l1_loss(jnp.array([0.0, 1.0, 3.0]), jnp.zeros(3), beta=2.0))
      [0.   0.25 2.  ]

    Source: Girshick, Fast R-CNN, arXiv:1504.08083.
    """
    return _loss_of(_smooth_l1, predictions, targets, where, beta=beta)


@public()
def l2_loss(
    predictions: ArrayLike, targets: ArrayLike | None = None, *, where: ArrayLike | None = None
) -> jax.Array:
    """Half the squared error.

    loss = ½ (x - y)², whose derivative is x - y.

    Args:
      predictions: floating-point array of any shape.
      targets: array of the same shape; 0 if left out.
      where: boolean, of the rank of `predictions` and broadcastable to it: what takes part. The
        rest may hold anything, in every argument: its loss and gradient are 0.

    Returns:
      One loss per element, in the shape of `predictions`; at least float32.

    Raises:
      TypeError: `predictions` is not floating-point.
      ValueError: the shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> print(jaxloss.l2_loss(jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 0.0, 3.5])))
      [0.    2.    0.125]

    Source: Bishop, Pattern Recognition and Machine Learning (2006), 1.1.
    """
    return _loss_of(_half_squared, predictions, targets, where)


@public()
def log_cosh(
    predictions: ArrayLike, targets: ArrayLike | None = None, *, where: ArrayLike | None = None
) -> jax.Array:
    """Log-cosh loss: squared near the target, absolute far from it, smooth everywhere.

    loss = log cosh e, with e = x - y: about ½ e² near 0 and |e| - log 2 far from it. Its derivative
    is tanh e. Small errors keep their digits, and large ones do not overflow.

    Args:
      predictions: floating-point array of any shape.
      targets: array of the same shape; 0 if left out.
      where: boolean, of the rank of `predictions` and broadcastable to it: what takes part. The
        rest may hold anything, in every argument: its loss and gradient are 0.

    Returns:
      One loss per element, in the shape of `predictions`; at least float32.

    Raises:
      TypeError: `predictions` is not floating-point.
      ValueError: the shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxloss
      >>> jnp.set_printoptions(precision=4)
      >>> print(jaxloss.log_cosh(jnp.array([0.0, 1e-3, 2.0]), jnp.zeros(3)))
      [0.000e+00 5.000e-07 1.325e+00]

    Source: Chen et al., Log Hyperbolic Cosine Loss Improves Variational Auto-Encoder (2019).
    """
    return _loss_of(_log_cosh, predictions, targets, where)
