"""What the cellar chooses for another platform, on a CPU."""

import contextlib

from jax import lax


@contextlib.contextmanager
def choices_for(platform):
    """Only for what is traced within: programs that JAX has kept are those of a CPU."""
    before = lax.platform_dependent

    def chosen(*args, **branches):
        return branches[platform if platform in branches else "default"](*args)

    lax.platform_dependent = chosen
    try:
        yield
    finally:
        lax.platform_dependent = before
