"""Every public name of optax's losses is here, and takes what it takes there.

optax's names and signatures are recorded: `python tests/test_optax_names.py` records those of the
installed optax anew, and the difference says what a new version brings.
"""

import inspect
import json
import pathlib

import optax.losses
import pytest

import jaxloss

RECORD = pathlib.Path(__file__).with_suffix(".json")
RECORDED = json.loads(RECORD.read_text()) if RECORD.exists() else {}


def signature(function):
    """Of each argument its name, whether it may be positional, and its default."""
    return [
        [
            p.name,
            p.kind is not p.KEYWORD_ONLY,
            getattr(p.default, "__name__", p.default) if p.default is not p.empty else "required",
        ]
        for p in inspect.signature(function).parameters.values()
    ]


def installed():
    names = [name for name, value in vars(optax.losses).items() if callable(value)]
    return {
        name: signature(getattr(optax.losses, name)) for name in sorted(names) if name[0] != "_"
    }


def test_record_is_that_of_the_installed_optax():
    found = installed()
    new = {name: found[name] for name in found if found[name] != RECORDED.get(name)}
    assert new == {}, "this optax has new names or signatures: record them, and have them here"
    assert RECORDED.keys() == found.keys()


@pytest.mark.parametrize("name", RECORDED)
def test_signature_takes_what_optax_takes(name):
    function = getattr(jaxloss, name)
    own, aliases = signature(function), getattr(function, "aliases", {})
    theirs = [[aliases.get(a, a), *rest] for a, *rest in RECORDED[name]]
    by_position = [argument for argument in theirs if argument[1]]
    assert own[: len(by_position)] == by_position
    defaults = {argument: default for argument, _, default in own}
    assert {argument: defaults[argument] for argument, _, _ in theirs} == {
        argument: default for argument, _, default in theirs
    }
    more = defaults.keys() - {argument for argument, _, _ in theirs}
    assert "required" not in [defaults[argument] for argument in more]


def test_an_alias_beside_its_own_name_is_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'predictions'"):
        jaxloss.cosine_similarity(x1=[1.0], predictions=[1.0], x2=[1.0])  # pyright: ignore


if __name__ == "__main__":
    lines = (f" {json.dumps(name)}: {json.dumps(found)}" for name, found in installed().items())
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")
