"""torch's live answers, to inputs that were not recorded; collected where torch is installed."""

import numpy as np
import pytest
from record_torch_reference import ask
from test_adaptive_softmax_modules import check_against_torch
from test_porting import IDS, PAIRS, TOLERANCE, load
from test_torch import FUNCTIONS, answers, compare
from torch_cases import calls


@pytest.mark.parametrize("function", FUNCTIONS)
def test_float64_is_torch_live(function, x64):
    chosen = [call for call in calls(seed=1) if call.function == function]
    for call, ours in zip(chosen, answers(chosen, wide=True), strict=True):
        compare(call, ours, ask(call), 1e-12)


@pytest.mark.parametrize(
    ("kind", "tolerance", "bias"), [("float32", 1e-6, False), ("float64", 1e-12, True)]
)
def test_adaptive_softmax_is_torch_live(kind, tolerance, bias, x64):
    check_against_torch(kind, tolerance, bias)


@pytest.mark.parametrize(("before", "after", "recorded"), PAIRS, ids=IDS)
def test_port_loses_what_torch_loses_live(before, after, recorded):
    wanted = load(before).train(2)
    np.testing.assert_allclose(load(after).train(2), wanted, rtol=TOLERANCE)
