"""The table of the porting guide: the losses of other libraries, by their formulas, are ours."""

import math
import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss

PAGE = pathlib.Path(__file__).parent.parent / "examples" / "porting" / "README.md"
ROWS = dict(
    re.findall(r"^\| `((?:torchvision|keras|timm|smp)\..*?) \| `(.*)` \|$", PAGE.read_text(), re.M)
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 4))
T = RNG.choice([0.0, 1.0], (3, 4))
Y = np.array([1, 3, 0])
P, Q = (z / z.sum(-1, keepdims=True) for z in RNG.uniform(0.1, 1, (2, 3, 4)))
SIGMOID = 1 / (1 + np.exp(-X))
SOFTMAX = np.exp(X) / np.exp(X).sum(-1, keepdims=True)
RIGHT = np.where(T > 0, SIGMOID, 1 - SIGMOID)
BALANCE = np.where(T > 0, 0.25, 0.75)
FOCAL = BALANCE * (1 - RIGHT) ** 2 * -np.log(RIGHT)
OF_LABEL = SOFTMAX[np.arange(3), Y]


def overlap(p, alpha, beta, smooth=0.0):
    right = (p * T).sum()
    wrong = alpha * (p * (1 - T)).sum() + beta * ((1 - p) * T).sum()
    return 1 - (right + smooth) / (right + wrong + smooth)


def huber(x, t):
    e = abs(x - t)
    return e * e / 2 if e < 1 else e - 0.5


# By the beginning of the row.
THEIRS = {
    "torchvision.ops.sigmoid_focal_loss": FOCAL,
    "keras.losses.MeanSquaredError": (X - T) ** 2,
    "keras.losses.MeanAbsoluteError": abs(X - T),
    "keras.losses.Huber": np.vectorize(huber)(X, T),
    "keras.losses.LogCosh": np.log(np.cosh(X - T)),
    "keras.losses.Hinge": np.maximum(1 - (2 * T - 1) * X, 0),
    "keras.losses.SquaredHinge": np.maximum(1 - (2 * T - 1) * X, 0) ** 2,
    "keras.losses.Poisson": P - T * np.log(P + 1e-7),
    "keras.losses.KLDivergence": (P * np.log(P / Q)).sum(-1),
    "keras.losses.CosineSimilarity": -np.array(
        [x @ t / max(math.hypot(*x) * math.hypot(*t), 1e-12) for x, t in zip(X, T, strict=True)]
    ),
    "keras.losses.BinaryCrossentropy": -np.log(RIGHT),
    "keras.losses.BinaryFocalCrossentropy": FOCAL,
    "keras.losses.CategoricalCrossentropy": -(P * np.log(SOFTMAX)).sum(-1),
    "keras.losses.SparseCategoricalCrossentropy": -np.log(OF_LABEL),
    "keras.losses.CategoricalFocalCrossentropy": -0.25 * (1 - OF_LABEL) ** 2 * np.log(OF_LABEL),
    "keras.losses.Dice": 1 - (2 * (P * T).sum() + 1e-7) / (P.sum() + T.sum() + 1e-7),
    "keras.losses.Tversky": overlap(P, 0.3, 0.7, 1e-7),
    "timm.loss.AsymmetricLossMultiLabel": -np.where(
        T > 0, (1 - SIGMOID) * np.log(SIGMOID), SIGMOID**4 * np.log(1 - SIGMOID)
    ),
    "timm.loss.SoftTargetCrossEntropy": -(P * np.log(SOFTMAX)).sum(-1),
    "timm.loss.LabelSmoothingCrossEntropy": -0.9 * np.log(OF_LABEL)
    - 0.1 * np.log(SOFTMAX).mean(-1),
    "timm.loss.JsdCrossEntropy": sum(
        (z * (np.log(z) - np.log((P + Q) / 2))).sum(-1) / 2 for z in (P, Q)
    ),
    "smp.losses.DiceLoss": 1 - 2 * (SIGMOID * T).sum() / (SIGMOID.sum() + T.sum()),
    "smp.losses.JaccardLoss": 1
    - (SIGMOID * T).sum() / (SIGMOID.sum() + T.sum() - (SIGMOID * T).sum()),
    "smp.losses.TverskyLoss": overlap(SIGMOID, 0.3, 0.7),
    "smp.losses.FocalLoss": FOCAL,
}


def test_every_row_has_a_formula():
    assert [re.split(r"[(`]", row)[0] for row in ROWS] == [*THEIRS]


@pytest.mark.parametrize("row", ROWS)
def test_row(row):
    arrays = {"x": X, "t": T, "p": P, "q": Q}
    names = {name: jnp.asarray(value, jnp.float32) for name, value in arrays.items()}
    ours = eval(ROWS[row], {"jaxloss": jaxloss, "jnp": jnp, "y": jnp.asarray(Y), **names})
    wanted = THEIRS[re.split(r"[(`]", row)[0]]
    np.testing.assert_allclose(np.squeeze(ours), wanted, rtol=2e-5, atol=1e-6)
