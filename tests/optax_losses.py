"""optax's own tests of its losses, run over jaxloss: `python tests/optax_losses.py`.

They come with the installed optax. What differs on purpose is left out or adapted by name below, as
`examples/porting/README.md` explains.
"""

import os
import pathlib
import sys

import optax.losses
import pytest

import jaxloss

MODULES = [
    "_classification",
    "_fenchel_young",
    "_ranking",
    "_regression",
    "_segmentation",
    "_self_supervised",
    "_smoothing",
]


def main() -> int:
    """Puts jaxloss's functions in the place of optax's, and runs optax's tests of them."""
    names = [n for n in vars(jaxloss) if not n.startswith("_") and hasattr(optax.losses, n)]
    modules = [sys.modules[f"optax.losses.{module}"] for module in MODULES]
    for module in (*modules, optax.losses, optax):
        for name in names:
            if hasattr(module, name):
                setattr(module, name, getattr(jaxloss, name))
    folder = pathlib.Path(optax.losses.__file__).parent
    files = [str(folder / f"{module}_test.py") for module in MODULES]
    print("over jaxloss:", *names)
    # Not with the settings of this repository.
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(folder), "-c", os.devnull]
    return pytest.main([*options, *files, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
