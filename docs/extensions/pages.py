"""Pages of the site: those of the repository, with links that hold here, and of the families."""

import inspect
import os
import pathlib
import re
import sys

import jaxloss
import jaxloss.functional
import jaxloss.linen
import jaxloss.nnx
from jaxloss import modules

DOCS = pathlib.Path(__file__).parents[1]
ROOT = DOCS.parent
FAMILIES = DOCS / "families"
DOORS = {
    "jaxloss": (jaxloss, "Unreduced"),
    "jaxloss.functional": (jaxloss.functional, "torch's functions"),
    "jaxloss.nnx": (jaxloss.nnx, "Flax NNX modules"),
    "jaxloss.linen": (jaxloss.linen, "Flax Linen modules"),
}
INCLUDE = re.compile(r"^```\{include\} (\S+)", re.MULTILINE)
# Where each page of the repository is included.
INCLUDED = {
    (DOCS / path).resolve(): page
    for page in DOCS.glob("*.md")
    for path in INCLUDE.findall(page.read_text())
}


def public(door) -> dict[str, object]:
    """The names that a door defines, as it orders them."""
    return {
        name: value
        for name, value in vars(door).items()
        if not name.startswith("_") and str(getattr(value, "__module__", "")).startswith("jaxloss")
    }


def links_to_names() -> dict[str, str]:
    """What a page may call a public name, and the full name."""
    found = {}
    for door, (module, _) in reversed(DOORS.items()):
        for name in public(module):
            short = door.rpartition(".")[2]
            beginnings = ["", f"{short}.", f"{door}."] + ["F."] * (short == "functional")
            found |= {f"{beginning}{name}": f"{door}.{name}" for beginning in beginnings}
    return found


NAMES = links_to_names()


def for_the_site(text: str, page: pathlib.Path, to: pathlib.Path) -> str:
    """A page's text whose links hold in another file, and whose names lead to the reference."""

    def link(match: re.Match) -> str:
        path, hash_, anchor = match[1].partition("#")
        if not path or "://" in path:
            return match[0]
        target = (page.parent / path).resolve()
        if target.is_dir():
            target = target / "__init__.py"
        target = INCLUDED.get(target, target)
        return f"]({os.path.relpath(target, to.parent)}{hash_}{anchor})"

    def name(match: re.Match) -> str:
        return f"{{py:obj}}`{match[1]} <{NAMES[match[1]]}>`" if match[1] in NAMES else match[0]

    # Code stays as it is, and so do the texts of links and headings.
    parts = re.split(
        r"(^```.*?^```|^#.*?$|\[[^\]]*\]\([^)]*\))", text, flags=re.DOTALL | re.MULTILINE
    )
    parts[::2] = [re.sub(r"`([\w.]+)`", name, part) for part in parts[::2]]
    parts[1::2] = [
        part if part.startswith("```") else re.sub(r"\]\(([^)\s]+)\)", link, part)
        for part in parts[1::2]
    ]
    return "".join(parts)


def read_own(app, name: str, content: list[str]) -> None:
    page = DOCS / f"{name}.md"
    if page.exists():
        content[0] = for_the_site(content[0], page, page)


def read_included(app, path: pathlib.Path, name: str, content: list[str]) -> None:
    content[0] = for_the_site(content[0], (DOCS / path).resolve(), DOCS / f"{name}.md")


def family(name: str, value: object) -> str:
    """The file, or folder, that a public name belongs to; the same in every layer."""
    plain = getattr(modules, name, value) if inspect.isclass(value) else value
    return plain.__module__.split(".")[1:][:2][-1]


def write(path: pathlib.Path, text: str) -> None:
    """Leaves a page that says the same alone, so that Sphinx need not read it again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def heading(text: str, sign: str) -> str:
    return f"{text}\n{sign * len(text)}\n"


def write_families(app, config) -> None:
    """A page for each family, with a table for each door that opens to it."""
    found: dict[str, dict[str, list[str]]] = {}
    for door, (module, _) in DOORS.items():
        for name, value in public(module).items():
            found.setdefault(family(name, value), {}).setdefault(door, []).append(name)
    for page in FAMILIES.glob("*.rst"):
        if page.stem not in found:
            page.unlink()  # Of a name that it had before.
    for name, doors in found.items():
        about = next(
            str(sys.modules[module].__doc__)
            for layer in ("core.", "_base.", "modules.", "")
            if (module := f"jaxloss.{layer}{name}") in sys.modules
        )
        title = "NNX" if name == "nnx" else name.replace("_", " ").capitalize()
        lines = [heading(title, "="), about.splitlines()[0], ""]
        for door, names in doors.items():
            lines += [heading(DOORS[door][1], "-"), ".. autosummary::", "   :toctree: ../api", ""]
            lines += [f"   {door}.{name}" for name in names]
            lines.append("")
        write(FAMILIES / f"{name}.rst", "\n".join(lines))


def let_names_break(app, page, template, context, doctree) -> None:
    """Long names may break between their words, in tables, titles and the list of pages."""

    def broken(match: re.Match) -> str:
        return re.sub(r"(?<=[._/])(?=\w)|(?<=[a-z])(?=[A-Z])", "<wbr>", match[0])

    for part in {"body", "furo_navigation_tree"} & context.keys():
        context[part] = re.sub(r"(?<=>)[\w./]{12,}(?=<)", broken, context[part])


def setup(app) -> dict[str, bool]:
    app.connect("config-inited", write_families)
    # Behind the theme, which makes the list of pages.
    app.connect("html-page-context", let_names_break, priority=900)
    app.connect("source-read", read_own)
    app.connect("include-read", read_included)
    return {"parallel_read_safe": True}
