"""Strictness for every test: no implicit promotion of dtypes or ranks, and 8 virtual devices."""

import importlib.util
import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


# Live parity is an extra: torch need not be there.
collect_ignore = [] if importlib.util.find_spec("torch") else ["test_torch_live.py"]


@pytest.fixture
def x64():
    """64-bit floats for one test."""
    with jax.enable_x64(True):
        yield
