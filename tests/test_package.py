"""The package as a whole: what imports what, its types."""

import ast
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import jaxloss

ROOT = pathlib.Path(str(jaxloss.__file__)).parent
MODULES = [m.name for m in pkgutil.walk_packages([str(ROOT)], "jaxloss.")]
# A module may import only from layers before its own.
LAYERS = [
    ("_checks", "_numerics"),
    ("_public",),
    ("_reduction",),
    ("core",),
    ("functional",),
    ("_modules",),
    ("nnx", "linen"),
]


def layer(module):
    """The number of the layer that a module of the package belongs to."""
    part = module.split(".")[1]
    return next(number for number, parts in enumerate(LAYERS) if part in parts)


def imports(path):
    """The package's modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "jaxloss":
            yield from (f"jaxloss.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("jaxloss.")
        ):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("jaxloss."))


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name):
    path = ROOT.parent / pathlib.Path(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for imported in imports(path):
        same_family = layer(imported) == layer(name) and imported.split(".")[1] in (
            "core",
            "functional",
            "_numerics",
        )
        assert layer(imported) < layer(name) or same_family, imported


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import jaxloss", "flax"),
        ("import jaxloss.functional", "flax"),
        ("import jaxloss.nnx", "jaxloss.linen"),
        ("import jaxloss.linen", "jaxloss.nnx"),
        ("import jaxloss", "optax"),
    ],
)
def test_import_brings_only_what_it_needs(statement, absent):
    code = f"import sys; {statement}; sys.exit({absent!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


MISTAKES = """
import jax.numpy as jnp
import jaxloss
from jaxloss import functional as F, linen, nnx

x, y = jnp.zeros((2, 3)), jnp.zeros(2, int)
F.cross_entropy(x, y, label_smothing=0.1)
F.l1_loss(x, x, reduction="avg")
F.kl_div(x, x, reduction="avg")
jaxloss.huber_loss(x, x, detla=1.0)
nnx.CrossEntropyLoss(label_smothing=0.1)
nnx.L1Loss(reduction="avg")
linen.CrossEntropyLoss(label_smothing=0.1)
linen.L1Loss(reduction="avg")
nnx.L1Loss()(x)
linen.L1Loss()(x)
"""
CORRECT = """
import jax
import jax.numpy as jnp
import jaxloss
from jaxloss import functional as F, linen, nnx

x, y = jnp.zeros((2, 3)), jnp.zeros(2, int)
a: jax.Array = F.cross_entropy(x, y, jnp.ones(3), label_smoothing=0.1, reduction="sum")
b: jax.Array = F.kl_div(x, x, reduction="batchmean")
c: jax.Array = jaxloss.reduce(jaxloss.huber_loss(x, x, delta=2.0), where=x > 0)
d: jax.Array = nnx.CrossEntropyLoss(weight=jnp.ones(3), label_smoothing=0.1)(x, y)
e: jax.Array = linen.CrossEntropyLoss(weight=jnp.ones(3), name="loss")(x, y)
f: float = linen.HuberLoss(delta=0.5).delta
g: jax.Array = nnx.TripletMarginWithDistanceLoss(distance_function=lambda u, v: u - v)(x, x, x)
"""


def pyright(text, folder):
    """Lines of the text in which pyright finds a mistake."""
    path = folder / "snippet.py"
    path.write_text(text)
    (folder / "pyrightconfig.json").write_text(f'{{"extraPaths": ["{ROOT.parent}"]}}')
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "-p", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "0 errors" in done.stdout or "error" in done.stdout, done.stdout + done.stderr
    return sorted(
        {int(line.split(":")[1]) for line in done.stdout.splitlines() if " error: " in line}
    )


def test_type_checker_finds_mistakes(tmp_path):
    assert pyright(CORRECT, tmp_path) == []
    first = 1 + MISTAKES.splitlines().index("F.cross_entropy(x, y, label_smothing=0.1)")
    assert pyright(MISTAKES, tmp_path) == list(range(first, 1 + len(MISTAKES.splitlines())))
