"""optax's own tests of its losses, run over jaxloss: `python tests/optax_losses.py`.

They come with the installed optax. What differs on purpose is adapted or left out by name below.
"""

import functools
import os
import pathlib
import sys

import jax.numpy as jnp
import optax.losses
import pytest
from optax.losses import _classification, _regression

import jaxloss


def by_position(f, *names):
    """optax takes these by position, too."""

    @functools.wraps(f)
    def call(*args, **kwargs):
        arrays = args[:2]
        return f(*arrays, **dict(zip(names, args[2:], strict=False)), **kwargs)

    return call


def of_any_rank(f):
    """optax takes a `where` of lower rank, and one of 0 and 1; labels that broadcast."""

    @functools.wraps(f)
    def call(logits, labels, *args, where=None, **kwargs):
        logits = jnp.asarray(logits)
        if where is not None:
            where = jnp.asarray(where) > 0
            where = where.reshape(*where.shape, *(1,) * (logits.ndim - where.ndim))
        return f(logits, labels, *args, where=where, **kwargs)

    return call


def cosine_similarity(predictions, targets, epsilon=0.0, **kwargs):
    """optax's `epsilon` is the least squared norm."""
    return jaxloss.cosine_similarity(predictions, targets, eps=jnp.sqrt(epsilon), **kwargs)


ADAPTED = {
    "cosine_similarity": cosine_similarity,
    "softmax_cross_entropy": of_any_rank(by_position(jaxloss.softmax_cross_entropy, "axis")),
    "softmax_cross_entropy_with_integer_labels": of_any_rank(
        by_position(jaxloss.softmax_cross_entropy_with_integer_labels, "axis")
    ),
    "huber_loss": by_position(jaxloss.huber_loss, "delta"),
}


def main() -> int:
    """Puts jaxloss's functions in the place of optax's, and runs optax's tests of them."""
    names = [n for n in vars(jaxloss) if not n.startswith("_") and hasattr(optax.losses, n)]
    for module in (_classification, _regression, optax.losses, optax):
        for name in names:
            if hasattr(module, name):
                setattr(module, name, ADAPTED.get(name, getattr(jaxloss, name)))
    folder = pathlib.Path(optax.losses.__file__).parent
    files = [str(folder / f"{module}_test.py") for module in ("_classification", "_regression")]
    print("over jaxloss:", *names)
    # Not with the settings of this repository.
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(folder), "-c", os.devnull]
    return pytest.main([*options, *files, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
