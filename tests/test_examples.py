"""The examples run, and their losses are interchangeable."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def load(name):
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("options", [[], ["--linen", "--loss", "multi_margin"]], ids=str)
def test_train_digits(options, tmp_path):
    picture = tmp_path / "digits.png"
    done = subprocess.run(
        [sys.executable, EXAMPLES / "train_digits.py", "--quick", "--out", picture, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"test accuracy ([\d.]+)%", done.stdout)
    assert found
    assert float(found[1]) > 80
    height, width, _ = matplotlib.image.imread(picture).shape
    assert height > 300
    assert width > 800


@pytest.mark.parametrize("linen", [False, True], ids=["nnx", "linen"])
def test_every_loss_of_train_digits_has_a_gradient(linen):
    digits = load("train_digits")
    outputs = jnp.asarray(np.random.default_rng(0).normal(size=(4, 10)), jnp.float32)
    labels = jnp.array([3, 1, 4, 1])
    for name in digits.LOSSES:
        value, gradient = jax.value_and_grad(digits.loss_function(name, linen))(outputs, labels)
        assert np.isfinite(value), name
        assert np.all(np.isfinite(gradient)), name
        assert np.any(gradient), name
