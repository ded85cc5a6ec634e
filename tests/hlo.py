"""Programs as a user's machine compiles them, where the other tests save themselves the time."""

from importlib import metadata
from typing import Any

import jax

# What `conftest.py` switches off.
DEFAULTS: dict[str, Any] = {"xla_backend_optimization_level": 3}
if metadata.version("jaxlib").startswith("0.10."):
    DEFAULTS["xla_cpu_use_fusion_emitters"] = True


def optimised(f, *args):
    """The compiled program of f for these arguments, from XLA's default pipeline."""
    return jax.jit(f).lower(*args).compile(compiler_options=DEFAULTS)
