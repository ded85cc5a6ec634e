"""The answers that torchaudio gave to the same calls, in float32."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torchaudio_cases import Call, calls

import jaxloss
from jaxloss import functional as F

REFERENCE = np.load(pathlib.Path(__file__).parent / "torchaudio_reference.npz")
CALLS = {function: [c for c in calls() if c.function == function] for function in dir(F)}


def answers(call: Call) -> list[np.ndarray]:
    return [REFERENCE[name] for name in REFERENCE.files if name.partition("/")[0] == call.name]


@pytest.mark.parametrize("call", CALLS["rnnt_loss"], ids=lambda call: call.name)
def test_transducer(call: Call):
    logits, *rest = call.args

    @jax.jit
    def derive(logits):
        losses, back = jax.vjp(lambda x: F.rnnt_loss(x, *rest, **call.options), logits)
        return losses, *back(jnp.ones_like(losses))

    losses, gradient = derive(jnp.asarray(logits))
    their_losses, their_gradient = answers(call)
    np.testing.assert_allclose(losses, their_losses, rtol=1e-6)
    np.testing.assert_allclose(gradient, their_gradient, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("call", CALLS["forced_align"], ids=lambda call: call.name)
def test_alignment_and_its_spans(call: Call):
    path, scores = F.forced_align(*call.args, **call.options)
    their_path, their_scores, their_spans = answers(call)
    np.testing.assert_array_equal(path, their_path)
    np.testing.assert_array_equal(scores, their_scores)
    spans = jaxloss.ctc_spans(path[0], scores[0], blank_id=call.options.get("blank", 0))
    count = len(their_spans)
    assert np.all(spans.labels[count:] == -1)
    # Theirs end before the frame that they name.
    ours = np.stack([spans.labels, spans.first, spans.last + 1, spans.probs], 1)[:count]
    np.testing.assert_allclose(ours, their_spans, rtol=1e-6)


def test_all_that_was_recorded_is_compared():
    recorded = {name.partition("/")[0] for name in REFERENCE.files}
    assert recorded == {call.name for call in calls()}
