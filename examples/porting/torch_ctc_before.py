"""Lines of handwritten digits in PyTorch, with CTC: before the port, see README.md.

python examples/porting/torch_ctc_before.py
"""

import argparse
import json
import pathlib

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.datasets import load_digits
from torch import nn  # pyright: ignore[reportMissingImports]

FEATURES, HIDDEN, SYMBOLS, BATCH = 64, 128, 11, 32  # Symbol 0 is the blank.
LONGEST, STRIDE = 5, 2  # Digits in a line; columns between frames.


def lines(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Frames (N, T, 64), which are 8 columns each, symbols (N, LONGEST) and the lengths of both."""
    images, digits = load_digits(return_X_y=True)
    drawn = rng.integers(len(digits), size=(count, LONGEST))
    lengths = rng.integers(2, LONGEST, count, endpoint=True)
    ink = np.float32(images / 16).reshape(-1, 8, 8)[drawn].swapaxes(1, 2)
    windows = sliding_window_view(ink.reshape(count, 8, -1), 8, axis=2)[:, :, ::STRIDE]
    frames = windows.swapaxes(1, 2).reshape(count, -1, FEATURES)
    return [frames, digits[drawn] + 1, (8 * lengths - 8) // STRIDE + 1, lengths]


def initial_parameters(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """torch's layout: weights (outputs, inputs)."""
    sizes = {"hidden": (HIDDEN, FEATURES), "head": (SYMBOLS, HIDDEN)}
    weights = {f"{k}.weight": rng.normal(size=s) / np.sqrt(s[1]) for k, s in sizes.items()}
    biases = {f"{k}.bias": np.zeros(s[0]) for k, s in sizes.items()}
    return {name: np.asarray(value, np.float32) for name, value in (weights | biases).items()}


class Network(nn.Module):
    def __init__(self, parameters: dict[str, np.ndarray]):
        super().__init__()
        self.hidden = nn.Linear(FEATURES, HIDDEN)
        self.head = nn.Linear(HIDDEN, SYMBOLS)
        self.load_state_dict({name: torch.tensor(value) for name, value in parameters.items()})

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(x)))


def train(epochs: int) -> list[float]:
    """The loss of every step."""
    rng = np.random.default_rng(0)
    data = lines(rng, 1024)
    model = Network(initial_parameters(rng))
    loss = nn.CTCLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(model, optimizer, frames, *labels_and_lengths):
        optimizer.zero_grad()
        log_probs = model(torch.tensor(frames)).log_softmax(-1).transpose(0, 1)
        value = loss(log_probs, *map(torch.tensor, labels_and_lengths))
        value.backward()
        optimizer.step()
        return value.detach()

    losses = []
    for epoch in range(epochs):
        for batch in rng.permutation(len(data[0])).reshape(-1, BATCH):
            losses.append(float(step(model, optimizer, *(part[batch] for part in data))))
        print(f"epoch {epoch + 1}: training loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=pathlib.Path, help="a JSON file for the loss of every step")
    args = parser.parse_args()
    losses = train(args.epochs)
    if args.out:
        args.out.write_text(json.dumps(losses))
