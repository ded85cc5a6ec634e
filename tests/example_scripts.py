"""The examples as modules and as scripts, for their tests."""

import contextlib
import importlib
import io
import pathlib
import subprocess
import sys

import jax
import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def load(name):
    """An example as a module, which may import its neighbours as it does when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        return importlib.import_module(name)


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
