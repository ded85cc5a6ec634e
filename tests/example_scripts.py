"""The examples as modules and as scripts, for their tests."""

import contextlib
import functools
import importlib
import io
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
# What the training of each depends on, beside the model that it begins with.
TRAININGS = {
    "read_digit_strings": ("seed", "quick", "epochs"),
    "train_language_model": ("seed", "steps", "devices"),
}


def load(name):
    """An example as a module, which may import its neighbours as it does when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        return importlib.import_module(name)


@functools.cache
def once(name):
    """An example's training, which is looked up where it would only repeat itself."""
    train, known = load(name).train, {}

    def found(args, model, of, *rest):
        weights = jax.tree.leaves(nnx.state(model, nnx.Param))
        beginning = b"".join(np.asarray(array).tobytes() for array in weights)
        # The text itself, unlike a method, follows from the size of the model.
        method = None if hasattr(of, "known") else of
        key = beginning, method, *rest, *(getattr(args, option) for option in TRAININGS[name])
        if key not in known:
            result = train(args, model, of, *rest)
            known[key] = jax.tree.map(lambda array: array, nnx.state(model)), result
        state, result = known[key]
        nnx.update(model, state)
        return result

    return found


def run(name, out, *options):
    """What a quick run of an example prints, in this process."""
    example = load(name)
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as printed,
        example.plt.rc_context(),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        for other in TRAININGS:
            patch.setattr(load(other), "train", once(other))
        patch.setattr(sys, "argv", [name, "--quick", "--out", str(out), *options])
        # The devices are there already.
        patch.setattr(jax.config, "update", lambda option, value: None)
        example.main()
        example.plt.close("all")
    return printed.getvalue()


def run_alone(name, out, *options):
    """The same by the command line, where the example chooses its devices."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", "--quick", "--out", out, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
