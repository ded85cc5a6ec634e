"""Strictness for every test: no implicit promotion of dtypes or ranks, and 8 virtual devices.

Most of the tests' time is compilation, so that by default a program is compiled as one piece, whose
machine code is not optimised: a third of the time. What XLA makes of the program, its passes over
memory and its collectives are the same;
`XLA_FLAGS=--xla_force_host_platform_device_count=8` tests with optimised code, and
`pytest --choices-for cuda` (or tpu) what the losses choose there, which is all of it but XLA.
"""

import contextlib
import gc
import importlib.util
import os
from importlib import metadata

os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    " --xla_cpu_parallel_codegen_split_count=1"
    # Later versions have one emitter only.
    + " --xla_cpu_use_fusion_emitters=false"
    * metadata.version("jaxlib").startswith("0.10."),
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pytest
from choices import choices_for

# Python would look again and again through all that JAX keeps: a seventh of the time.
gc.set_threshold(100_000)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


# Live parity is an extra: torch need not be there.
collect_ignore = [] if importlib.util.find_spec("torch") else ["test_torch_live.py"]


def pytest_addoption(parser):
    platforms = "cpu", "cuda", "rocm", "tpu"
    parser.addoption("--choices-for", choices=platforms, help="as the losses choose for it")


@pytest.fixture(autouse=True, scope="session")
def _choices(request):
    platform = request.config.getoption("--choices-for")
    with choices_for(platform) if platform else contextlib.nullcontext():
        yield


@pytest.fixture
def x64():
    """64-bit floats for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """One test in both widths."""
    if request.param == "float64":
        request.getfixturevalue("x64")
    return np.dtype(request.param)
