"""Calls that jaxloss.functional and torchaudio.functional should answer alike, with inputs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Call(NamedTuple):
    name: str
    function: str
    args: tuple[Any, ...]
    options: dict[str, Any]


def calls(seed: int = 0) -> list[Call]:
    rng = np.random.default_rng(seed)

    def transducer(name: str, sizes: tuple[int, int, int, int], **options: Any) -> Call:
        """Examples of several lengths; torchaudio asks that one be as long as the array."""
        examples, frames, labels, classes = sizes
        logits = rng.normal(size=(examples, frames, labels + 1, classes)).astype(np.float32) * 2
        if not options.get("fused_log_softmax", True):
            logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        blank = options.get("blank", -1) % classes
        targets = (blank + 1 + rng.integers(0, classes - 1, (examples, labels))) % classes
        lengths = [rng.integers(1, n + 1, examples) for n in (frames, labels)]
        lengths[0][0], lengths[1][-1] = frames, labels
        given = (targets, *lengths)
        return Call(name, "rnnt_loss", (logits, *(a.astype(np.int32) for a in given)), options)

    def alignment(name: str, sizes: tuple[int, int, int], **options: Any) -> Call:
        """Of one example, which is all that torchaudio takes."""
        frames, labels, classes = sizes
        logits = rng.normal(size=(1, frames, classes)).astype(np.float32) * 3
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        blank = options.get("blank", 0)
        targets = (blank + 1 + rng.integers(0, classes - 1, (1, labels))) % classes
        return Call(name, "forced_align", (log_probs, targets.astype(np.int32)), options)

    sizes = (4, 12, 5, 7)
    return [
        transducer("defaults", sizes),
        transducer("blank first, sum", sizes, blank=0, reduction="sum"),
        transducer("blank inside, each", sizes, blank=3, reduction="none"),
        transducer("blank from the end", sizes, blank=-2),
        transducer("clamped", sizes, clamp=0.05, reduction="sum"),
        transducer("log probabilities", sizes, fused_log_softmax=False, reduction="none"),
        transducer("clamped log probabilities", sizes, fused_log_softmax=False, clamp=0.3),
        transducer("one frame, one label", (2, 1, 1, 3), blank=0),
        transducer("long", (2, 60, 20, 6), blank=0, reduction="none"),
        alignment("aligned", (20, 6, 5)),
        alignment("blank last", (20, 6, 5), blank=4),
        alignment("tight", (8, 4, 9)),
        alignment("repeated", (30, 12, 3)),
        alignment("long path", (300, 80, 12)),
    ]
