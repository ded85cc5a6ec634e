"""The package as a whole: what imports what, how it is built, its types."""

import ast
import email
import pathlib
import pkgutil
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
import test_modules
from cases import LOSSES

import jaxloss
import jaxloss.modules

ROOT = pathlib.Path(str(jaxloss.__file__)).parent
MODULES = [m.name for m in pkgutil.walk_packages([str(ROOT)], "jaxloss.")]
# A module may import only from layers before its own.
LAYERS = [
    ("_base.conditions", "_base.exact", "_base.host", "_base.linear_map", "_base.meshes"),
    ("_base.xla",),
    ("_base.norms",),
    ("_base.elementwise",),
    ("_base.checks",),
    ("_base.arguments",),
    ("_base.call",),
    ("_base.reduction",),
    ("core",),
    ("functional",),
    ("modules",),
    ("nnx", "linen"),
]
# The files of each of these may import one another.
FAMILIES = ("jaxloss.core", "jaxloss.functional", "jaxloss.modules")


def layer(module):
    """The number of the layer that a module of the package belongs to."""
    name = module.removeprefix("jaxloss.")
    return next(n for n, parts in enumerate(LAYERS) if name.startswith(parts))


def imports(path):
    """The package's modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "jaxloss":
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("jaxloss."))


@pytest.mark.parametrize("name", [name for name in MODULES if name != "jaxloss._base"])
def test_imports_point_one_way(name):
    path = ROOT.parent / pathlib.Path(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for imported in imports(path):
        same = layer(imported) == layer(name) and str(imported).startswith(FAMILIES)
        assert layer(imported) < layer(name) or same, imported


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


def test_functional_is_an_attribute():
    # In a process of its own, since any import of it elsewhere would make it one.
    code = "import jaxloss; jaxloss.functional.l1_loss"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


HINTS = {
    "nnx": " before `import jaxloss.nnx`",
    "linen": " before `import jaxloss.linen`",
    "mse_loss": "; torch's functions are in `jaxloss.functional`",
    "MSELoss": "; torch's classes are in `jaxloss.nnx` and `jaxloss.linen`",
    "mse": "",
    "__wrapped__": "",
}


def test_an_error_says_where_a_name_of_another_door_is():
    # In a process of its own, in which nobody has imported `jaxloss.nnx`.
    code = f"""
import jaxloss
for name in {[*HINTS]}:
    try:
        getattr(jaxloss, name)
    except AttributeError as error:
        print(error)
"""
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, check=True, cwd=ROOT.parent, capture_output=True, text=True)
    wanted = [f"module 'jaxloss' has no attribute {name!r}{hint}" for name, hint in HINTS.items()]
    assert ran.stdout.splitlines() == wanted


# What has tests of its own instead of a row: it returns no losses, or holds parameters.
ROWLESS = {
    jaxloss: {
        "adaptive_log_softmax",
        "adaptive_softmax_cross_entropy",
        "ctc_alignment",
        "ctc_forced_alignment",
        "ctc_greedy_decode",
        "ctc_spans",
        "edit_distance",
        "ctc_loss_with_forward_probs",
        "make_fenchel_young_loss",
        "ntxent",
        "reduce",
        "smooth_labels",
        "rnnt_loss_of_sum",
        "softmax_statistics",
        "linear_softmax_divergence",
        "linear_softmax_statistics",
        "Statistics",
    },
    jaxloss.functional: {"forced_align"},
    jaxloss.modules: {
        "AdaptiveLogSoftmaxWithLoss",
        "AdaptiveOutput",
        "InfoNCELoss",
        "LinearCrossEntropyLoss",
        "SigmoidContrastiveLoss",
    },
}


@pytest.mark.parametrize(
    ("door", "rows"),
    [
        (jaxloss, {loss.core for loss in LOSSES}),
        (jaxloss.functional, {loss.torch for loss in LOSSES if loss.torch}),
        (jaxloss.modules, {row[0] for row in test_modules.MODULES}),
    ],
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_no_loss_is_left_out_of_the_tables(door, rows):
    offered = {name for name, value in vars(door).items() if callable(value) and name[0] != "_"}
    assert offered - rows == ROWLESS[door]


def build(kind, source, folder):
    """The file that hatchling makes of a source tree, without a network."""
    code = f"import hatchling.build as h; h.build_{kind}({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=source, capture_output=True)
    (file,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return file


def test_package_builds(tmp_path):
    name = f"jaxloss-{jaxloss.__version__}"
    with tarfile.open(build("sdist", ROOT.parent, tmp_path)) as sdist:
        sdist.extractall(tmp_path, filter="data")
    source = tmp_path / name
    assert (source / "tests").is_dir()  # It can be tested, too.
    with zipfile.ZipFile(build("wheel", source, tmp_path)) as wheel:
        files = {*wheel.namelist()}
        metadata = email.message_from_bytes(wheel.read(f"{name}.dist-info/METADATA"))
    modules = {str(path.relative_to(ROOT.parent)) for path in ROOT.rglob("*.py")}
    described = {"METADATA", "WHEEL", "RECORD", "licenses/LICENSE"}
    assert files == {*modules, "jaxloss/py.typed"} | {f"{name}.dist-info/{x}" for x in described}
    assert metadata["Version"] == jaxloss.__version__
    assert metadata["License-Expression"] == "Apache-2.0"


def test_version_is_written_once():
    root = ROOT.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert "version" in project["dynamic"]
    assignment = re.compile(r"^ *(__version__|VERSION|version)\b.*[\"']\d+\.\d+", re.MULTILINE)
    places = [path for path in ROOT.rglob("*.py") if assignment.search(path.read_text())]
    assert places == [ROOT / "__init__.py"]


def test_pages_of_a_release_name_the_version():
    assert f"\nversion: {jaxloss.__version__}\n" in (ROOT.parent / "CITATION.cff").read_text()
    assert f"\n## [{jaxloss.__version__}] - 2" in (ROOT.parent / "CHANGELOG.md").read_text()


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
