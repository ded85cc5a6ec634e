"""The documentation: its examples run, its links lead somewhere, and it leaves nothing out."""

import dataclasses
import doctest
import importlib
import inspect
import pathlib
import pkgutil
import re

import numpy as np
import pytest

import jaxloss
import jaxloss.functional
import jaxloss.linen
import jaxloss.nnx
from jaxloss import modules

PACKAGE = pathlib.Path(str(jaxloss.__file__)).parent
ROOT = PACKAGE.parent
MODULES = [m.name for m in pkgutil.walk_packages([str(PACKAGE)], "jaxloss.")]
PAGES = ["README.md", "CONTRIBUTING.md"] + [
    str(page.relative_to(ROOT))
    for pattern in ("examples/**/README.md", "benchmarks/README.md", "docs/*.md")
    for page in sorted(ROOT.glob(pattern))
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_the_documentation(name):
    module = importlib.import_module(name)
    examples = [test for test in doctest.DocTestFinder().find(module, name) if test.examples]
    for example in examples:
        with np.printoptions(precision=8):  # What one example sets must not reach the next.
            assert doctest.DocTestRunner().run(example).failed == 0, example.name


@pytest.mark.parametrize(
    ("page", "prints"),
    [
        ("README.md", 3),
        ("docs/doors.md", 1),
        ("examples/porting/README.md", 23),
        ("examples/policies/README.md", 9),
    ],
)
def test_code_of_a_page(page, prints, capsys):
    text = (ROOT / page).read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    exec(compile(code, page, "exec"), {})
    wanted = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
    printed = capsys.readouterr().out.splitlines()
    assert len(wanted) == len(printed) == prints
    for line, beginning in zip(printed, wanted, strict=True):
        assert line.startswith(beginning)


def prose(page):
    """A page without its code."""
    return re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)


def anchors(page):
    """The names by which the page's headings can be linked to."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ +(.*?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"https?://", link):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_diffs_of_the_porting_guide_are_those_of_the_files():
    porting = ROOT / "examples" / "porting"
    diffs = re.findall(r"```diff\n(.*?)```", (porting / "README.md").read_text(), re.DOTALL)
    assert len(diffs) == 2
    for diff, kind in zip(diffs, ("", "ctc_"), strict=True):
        files = {"-": f"torch_{kind}before.py", "+": f"jaxloss_{kind}after.py"}
        text = {sign: (porting / name).read_text().splitlines() for sign, name in files.items()}
        for line in filter(None, diff.splitlines()):
            for sign in files if line[0] == " " else line[0]:
                assert line[1:] in text[sign]


SECTIONS = "Args Returns Raises Example Source".split()


def sections(text):
    """The sections of a docstring by name."""
    parts = re.split(r"^([A-Z]\w+):", inspect.cleandoc(text), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def check(text, names, parameters):
    """All sections are there in their order, and the arguments are the parameters."""
    found = sections(text)
    assert [*found] == [*names]
    assert all(part.strip() for part in found.values())
    assert ">>>" in found["Example"]
    assert re.findall(r"^  (\w+): ", found["Args"], re.MULTILINE) == [*parameters]


def public(module):
    return [
        (name, value)
        for name, value in vars(module).items()
        if not name.startswith("_") and str(getattr(value, "__module__", "")).startswith("jaxloss")
    ]


@pytest.mark.parametrize(
    ("door", "name"),
    [
        (d, name)
        for d in (jaxloss, jaxloss.functional)
        for name, value in public(d)
        if not inspect.isclass(value)
    ],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_documentation_of_a_function(door, name):
    function = getattr(door, name)
    check(function.__doc__, SECTIONS, inspect.signature(function).parameters)


CLASSES = [name for name, _ in public(jaxloss.linen)]


@pytest.mark.parametrize("name", CLASSES)
def test_documentation_of_a_class(name):
    plain = getattr(modules, name)
    flax = [getattr(door, name) for door in (jaxloss.nnx, jaxloss.linen)]
    for door, cls in zip(("nnx", "linen"), flax, strict=True):
        about, _, example = cls.__doc__.partition("Example:")
        assert about == plain.__doc__.partition("Example:")[0]  # Written once.
        assert re.search(rf"\b{door}\.{name}\(", example)
    assert flax[0].__doc__ == plain.__doc__
    fields = [field.name for field in dataclasses.fields(plain) if field.init]
    own = set(inspect.signature(flax[0].__init__).parameters) - {*fields, "self"}
    assert own <= {"rngs"}
    names = [section for section in SECTIONS if section != "Returns"]
    check(plain.__doc__, names, [*fields, *own])


def test_every_public_name_is_checked():
    assert len(public(jaxloss)) > 25
    assert len(public(jaxloss.functional)) > 20
    assert [name for name, _ in public(jaxloss.nnx)] == ["Buffer", *CLASSES]
    check(jaxloss.nnx.Buffer.__doc__, ["Args", "Example", "Source"], ["value"])
    results = [value for _, value in public(jaxloss) if inspect.isclass(value)]
    assert results == [jaxloss.Statistics]
    check(results[0].__doc__, ["Args", "Example", "Source"], jaxloss.Statistics._fields)
