"""Reads lines of handwritten digits with a transducer (RNN-T), beside CTC.

python examples/read_digit_strings_transducer.py --seed 1

The lines and the steps are those of `read_digit_strings.py`, and the encoder starts as the network
that CTC has trained there. A frame may read any number of digits, which depend on those before.
"""

from __future__ import annotations

import argparse
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import read_digit_strings as strings
from flax import nnx
from matplotlib.image import AxesImage
from read_digit_strings import CTC, LONGEST, SYMBOLS, Lines, Method, Network

import jaxloss
from jaxloss import functional as F

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FEATURES = 64  # Of a frame, and of what was read before.
MOST = 2  # Symbols that are read in a frame.


class Transducer(nnx.Module):
    def __init__(self, ctc: Network, rngs: nnx.Rngs):
        self.encoder = nnx.clone(ctc)
        self.encoder.head = nnx.Linear(ctc.head.in_features, FEATURES, rngs=rngs)
        self.predictor = nnx.Embed(len(SYMBOLS), FEATURES, rngs=rngs)
        self.joiner = nnx.Linear(FEATURES, len(SYMBOLS), rngs=rngs)
        # Digits that the encoder has seen, less those that were read: of two equal ones the last
        # symbol alone does not tell whether the second was.
        begins = nnx.initializers.constant(-1.2)  # In about every fourth frame.
        self.counter = nnx.Linear(FEATURES, 1, bias_init=begins, rngs=rngs)
        self.unread = nnx.Param(0.1 * jax.random.normal(rngs.params(), (FEATURES,)))

    def frames(self, lines: Lines) -> jax.Array:
        """What is known of each frame."""
        frames = self.encoder(lines.images)
        seen = jnp.cumsum(nnx.sigmoid(self.counter(frames)[..., 0]), 1)
        return frames + jnp.tensordot(seen, self.unread[...], 0)

    def before(self, last: jax.Array, count: jax.Array) -> jax.Array:
        """What is known behind so many symbols, of which this is the last; 0 before the first."""
        read = count.astype(jnp.float32)
        return self.predictor(last) - jnp.tensordot(read, self.unread[...], 0)

    def parts(self, lines: Lines) -> tuple[jax.Array, jax.Array]:
        """What is known of each frame, and behind each number of labels."""
        last = jnp.pad(jnp.asarray(lines.labels), ((0, 0), (1, 0)))
        count = jnp.broadcast_to(jnp.arange(last.shape[1])[None], last.shape)
        return self.frames(lines), self.before(last, count)

    def logits(self, frames: jax.Array, before: jax.Array) -> jax.Array:
        return self.joiner(jnp.tanh(frames + before))


def losses(model: Transducer, lines: Lines) -> jax.Array:
    kernel, bias = model.joiner.kernel[...].T, model.joiner.bias
    assert bias is not None
    return jaxloss.rnnt_loss_of_sum(*model.parts(lines), kernel, *lines[1:], bias=bias[...])


def read(model: Transducer, lines: Lines) -> tuple[jax.Array, jax.Array]:
    """The most likely symbol, one after the other: labels, and which of them do not count."""

    def frame(state, inputs):
        last, count = state
        encoding, going = inputs
        said = []
        for _ in range(MOST):
            symbol = jnp.argmax(model.logits(encoding, model.before(last, count)), -1)
            going = going & (symbol != 0)
            last = jnp.where(going, symbol, last)
            count = jnp.where(going, count + 1, count)
            said.append(jnp.where(going, symbol, 0))
        return (last, count), jnp.stack(said)

    frames = jnp.swapaxes(model.frames(lines), 0, 1)
    start = 2 * (jnp.zeros(frames.shape[1], int),)
    _, said = jax.lax.scan(frame, start, (frames, ~jnp.asarray(lines.logit_paddings).T))
    labels = said.reshape(-1, frames.shape[1]).T
    return labels, labels == 0


TRANSDUCER = Method(losses, read)


@nnx.jit
def alignment(model: Transducer, lines: Lines) -> jax.Array:
    """The probability that each label is read in each frame, (N, frames, LONGEST)."""
    frames, before = model.parts(lines)
    log_probs = jax.nn.log_softmax(model.logits(frames[:, :, None], before[:, None]))
    frame_count, label_count = (
        jnp.sum(~jnp.asarray(x), 1) for x in (lines.logit_paddings, lines.label_paddings)
    )

    def total(log_probs: jax.Array) -> jax.Array:
        given = log_probs, lines.labels, frame_count, label_count
        return F.rnnt_loss(*given, blank=0, reduction="sum", fused_log_softmax=False)

    # The gradient of factors is minus their occupancies: the shares of paths that they are part of.
    occupancies = -jax.grad(total)(log_probs)[:, :, :-1]
    return jnp.take_along_axis(occupancies, lines.labels[:, None, :, None], 3)[..., 0]


class Views(NamedTuple):
    """What both make of lines."""

    ctc: strings.Sight
    answer: tuple[jax.Array, jax.Array]  # The transducer's labels and paddings.
    alignment: jax.Array  # Its own.


def draw_line(panels, heading: str, views: Views, lines: Lines, n: int) -> AxesImage:
    """A line, and where both find its digits."""
    truth = strings.truths(lines)[n]
    answers = [strings.spell(*answer)[n] for answer in (views.ctc.answer, views.answer)]
    color = "black" if answers == [truth, truth] else "tab:red"
    heading = f"{heading}: {truth}\nread as {answers[0]} by CTC, {answers[1]} by the transducer"
    panels[0].set_title(heading, color=color)
    extent = (0, strings.WIDTH, strings.HEIGHT, 0)
    panels[0].imshow(lines.images[n, ..., 0], cmap="gray_r", vmin=0, vmax=1, extent=extent)
    panels[0].set_ylabel("image row")

    of_ctc, of_transducer = (x.alignment[n, :, : len(truth)] for x in (views.ctc, views))
    strings.heat_map(panels[1], of_ctc, truth, "CTC: true digit")
    strings.frame_spans(panels[1], views.ctc, n, truth)
    heat = strings.heat_map(panels[2], of_transducer, truth, "transducer: true digit")
    for axes in panels:
        axes.set_aspect("auto")
        axes.set_xlim(0, strings.STRIDE * np.sum(~lines.logit_paddings[n]))
    panels[2].set_xlabel(
        f"image column; a frame is {strings.STRIDE} columns; framed: CTC's best path"
    )
    return heat


def draw(args: argparse.Namespace, ctc: Network, transducer: Transducer, curves, lines) -> None:
    """Two test lines with both alignments, and the learning curves."""
    figure = plt.figure(figsize=(15, 7), layout="constrained")
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=[2, 1]))
    panels = left.subplots(3, 2, sharex="col", height_ratios=[3, LONGEST, LONGEST])
    headings, lines = strings.shown(transducer, lines, TRANSDUCER, " of the transducer")
    answer = nnx.jit(read)(transducer, lines)
    views = Views(strings.look(ctc, lines), answer, alignment(transducer, lines))
    heats = [draw_line(panels[:, n], name, views, lines, n) for n, name in enumerate(headings)]
    left.colorbar(heats[0], ax=panels, label="probability in the frame", aspect=40)

    top, bottom = right.subplots(2, 1, sharex=True)
    for (name, (values, rates)), color in zip(
        curves.items(), ("tab:blue", "tab:orange"), strict=True
    ):
        epochs = np.arange(1, len(values) + 1) / strings.STEPS
        top.plot(epochs, values, color, linewidth=0.8, label=name)
        label = f"{name}: {rates[-1]:.2%}"
        bottom.plot(
            np.arange(1, len(rates) + 1), 100 * np.array(rates), "o-", color=color, label=label
        )
    top.set_ylabel("training loss, nats per line")
    bottom.set_ylabel("test character error rate, %")
    bottom.set_xlabel("epoch")
    bottom.xaxis.get_major_locator().set_params(integer=True)
    for axes in top, bottom:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.legend()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=110)


def main() -> None:
    args = strings.arguments(__doc__, "read_digit_strings_transducer.png")
    start = time.perf_counter()
    ctc = Network(nnx.Rngs(args.seed))
    *of_ctc, lines = strings.train(args, ctc, CTC)
    transducer = Transducer(ctc, nnx.Rngs(args.seed))
    *of_transducer, _ = strings.train(args, transducer, TRANSDUCER)
    curves = {"CTC": of_ctc, "transducer": of_transducer}
    draw(args, ctc, transducer, curves, lines)
    rates = f"{of_ctc[1][-1]:.2%} with CTC and {of_transducer[1][-1]:.2%} with the transducer"
    seconds = time.perf_counter() - start
    print(f"test character error rate {rates} in {seconds:.0f} s; picture: {args.out}")


if __name__ == "__main__":
    main()
