"""Records torchaudio's answers to torchaudio_cases.py: python tests/record_torchaudio_reference.py

Needs only torch 2.9.1 and torchaudio 2.9.1. Writes torchaudio_reference.npz beside itself.
"""

from __future__ import annotations

import pathlib
import warnings
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]  An extra that need not be there.
import torchaudio  # pyright: ignore[reportMissingImports]  In no extra: see above.
from torchaudio_cases import Call, calls

HERE = pathlib.Path(__file__).parent


def ask(call: Call) -> list[np.ndarray]:
    """The loss and its gradient; or a path, its scores, and its spans: token, start, end, score."""
    args = [torch.from_numpy(a.copy()) for a in call.args]
    function = getattr(torchaudio.functional, call.function)
    if call.function == "rnnt_loss":
        losses = function(args[0].requires_grad_(), *args[1:], **call.options)
        (gradient,) = torch.autograd.grad(losses.sum(), args[:1])
        return [losses.detach().numpy(), gradient.numpy()]
    path, scores = function(*args, **call.options)
    spans = torchaudio.functional.merge_tokens(path[0], scores[0].exp(), **call.options)
    rows = [(span.token, span.start, span.end, span.score) for span in spans]
    return [path.numpy(), scores.numpy(), np.array(rows, np.float32)]


def main() -> None:
    warnings.simplefilter("ignore")  # Both functions are deprecated there.
    answers: dict[str, Any] = {
        f"{call.name}/{number}": answer
        for call in calls()
        for number, answer in enumerate(ask(call))
    }
    np.savez_compressed(HERE / "torchaudio_reference.npz", **answers)


if __name__ == "__main__":
    main()
