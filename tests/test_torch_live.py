"""Ports and the adaptive softmax beside torch itself; its losses are in test_torch.py."""

import numpy as np
import pytest
from test_adaptive_softmax_modules import check_against_torch
from test_porting import IDS, PAIRS, TOLERANCE, load


@pytest.mark.parametrize(
    ("kind", "tolerance", "bias"), [("float32", 1e-6, False), ("float64", 1e-12, True)]
)
def test_adaptive_softmax_is_torch_live(kind, tolerance, bias, x64):
    check_against_torch(kind, tolerance, bias)


@pytest.mark.parametrize(("before", "after", "recorded"), PAIRS, ids=IDS)
def test_port_loses_what_torch_loses_live(before, after, recorded):
    wanted = load(before).train(2)
    np.testing.assert_allclose(load(after).train(2), wanted, rtol=TOLERANCE)
