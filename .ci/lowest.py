"""Prints pip constraints: each requirement of pyproject.toml at the lowest version it admits."""

import itertools
import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

for requirement in itertools.chain(
    PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()
):
    if not requirement.startswith(PROJECT["name"]):
        bound = re.fullmatch(r"([\w.-]+)(?:\[.*\])?[>=]=([\w.]+)(?:;.*)?", requirement)
        if bound is None:
            raise SystemExit(f"pyproject.toml: {requirement!r} has no lowest version")
        print("==".join(bound.groups()))
