"""The documentation: its examples run, its links lead somewhere, and it leaves nothing out."""

import doctest
import importlib
import pathlib
import pkgutil
import re

import pytest

import jaxloss
import jaxloss.functional

PACKAGE = pathlib.Path(str(jaxloss.__file__)).parent
ROOT = PACKAGE.parent
MODULES = [m.name for m in pkgutil.walk_packages([str(PACKAGE)], "jaxloss.")]
PAGES = ["README.md"] + [
    str(page.relative_to(ROOT))
    for folder in ("examples", "benchmarks")
    for page in sorted((ROOT / folder).rglob("README.md"))
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_the_documentation(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.FAIL_FAST)
    assert result.failed == 0


@pytest.mark.parametrize(("page", "prints"), [("README.md", 4), ("examples/porting/README.md", 12)])
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


SECTIONS = ("Args:", "Returns:", "Raises:", "Example:", "Source:")


@pytest.mark.parametrize("module", [jaxloss, jaxloss.functional], ids=lambda m: m.__name__)
def test_documentation_is_complete(module):
    for name, value in vars(module).items():
        if callable(value) and not name.startswith("_"):
            text = str(value.__doc__)
            assert not [s for s in SECTIONS if s not in text and name != "reduce"], name
            assert ">>>" in text
