"""Handwritten digits in PyTorch: the training loop before the port, see README.md.

python examples/porting/torch_before.py
"""

import argparse
import json
import pathlib

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from sklearn.datasets import load_digits
from torch import nn  # pyright: ignore[reportMissingImports]

FEATURES, HIDDEN, CLASSES, BATCH = 64, 128, 10, 64


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 64) in [0, 1] and labels (N,)."""
    images, labels = load_digits(return_X_y=True)
    return np.asarray(images / 16, np.float32), np.asarray(labels)


def initial_parameters(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """torch's layout: weights (outputs, inputs)."""
    sizes = {"hidden": (HIDDEN, FEATURES), "head": (CLASSES, HIDDEN)}
    weights = {f"{k}.weight": rng.normal(size=s) / np.sqrt(s[1]) for k, s in sizes.items()}
    biases = {f"{k}.bias": np.zeros(s[0]) for k, s in sizes.items()}
    return {name: np.asarray(value, np.float32) for name, value in (weights | biases).items()}


class Network(nn.Module):
    def __init__(self, parameters: dict[str, np.ndarray]):
        super().__init__()
        self.hidden = nn.Linear(FEATURES, HIDDEN)
        self.head = nn.Linear(HIDDEN, CLASSES)
        self.load_state_dict({name: torch.tensor(value) for name, value in parameters.items()})

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(x)))


def train(epochs: int) -> list[float]:
    """The loss of every step."""
    rng = np.random.default_rng(0)
    images, labels = digits()
    class_weights = np.float32(len(labels) / CLASSES / np.bincount(labels))
    model = Network(initial_parameters(rng))
    loss = nn.CrossEntropyLoss(weight=torch.tensor(class_weights), label_smoothing=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(model, optimizer, x, y):
        optimizer.zero_grad()
        value = loss(model(torch.tensor(x)), torch.tensor(y))
        value.backward()
        optimizer.step()
        return value.detach()

    losses = []
    for epoch in range(epochs):
        for batch in rng.permutation(len(images) // BATCH * BATCH).reshape(-1, BATCH):
            losses.append(float(step(model, optimizer, images[batch], labels[batch])))
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
