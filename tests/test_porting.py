"""The ported training loops of examples/porting lose what torch's lose, step by step.

What torch loses is recorded: after a change of the loops repeat, with torch 2.13,

    python examples/porting/torch_before.py --out tests/porting_cross_entropy.json
    python examples/porting/torch_ctc_before.py --out tests/porting_ctc.json

Where torch is installed, test_torch_live.py compares with it itself.
"""

import ast
import importlib.util
import json
import pathlib

import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
PORTING = HERE.parent / "examples" / "porting"
PAIRS = [
    ("torch_before", "jaxloss_after", "porting_cross_entropy.json"),
    ("torch_ctc_before", "jaxloss_ctc_after", "porting_ctc.json"),
]
IDS = ["cross entropy", "ctc"]
TOLERANCE = 1e-5  # The largest difference seen is 6e-7: rounding, which tanh does not amplify.


def load(name):
    """A training loop as a module."""
    spec = importlib.util.spec_from_file_location(name, PORTING / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("before", "after", "recorded"), PAIRS, ids=IDS)
def test_port_loses_what_torch_lost(before, after, recorded):
    wanted = json.loads((HERE / recorded).read_text())
    assert wanted[-1] < wanted[0] / 3  # A loop that learns nothing would show nothing.
    np.testing.assert_allclose(load(after).train(10), wanted, rtol=TOLERANCE)


def parts(name):
    """The text of each function and class of a loop, line by line; `train` without its `step`."""
    tree = ast.parse((PORTING / f"{name}.py").read_text())
    found = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    train = found["train"]
    train.body = [line for line in train.body if not isinstance(line, ast.FunctionDef)]
    return {name: ast.unparse(node).splitlines() for name, node in found.items()}


@pytest.mark.parametrize(("before", "after", "recorded"), PAIRS, ids=IDS)
def test_port_changes_the_network_and_the_train_step_only(before, after, recorded):
    old, new = parts(before), parts(after)
    assert [*old] == [*new]
    assert {name for name in old if old[name] != new[name]} == {"Network", "train"}
    changed = [
        line for line, other in zip(old["train"], new["train"], strict=True) if line != other
    ]
    assert [line.split()[0] for line in changed] == ["loss", "optimizer"]
