"""The examples that read lines of digits run, decode by the rules, and are given whole lines."""

import re

import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from example_scripts import load, run
from flax import nnx

import jaxloss


def test_read_digit_strings(tmp_path):
    picture = tmp_path / "lines.png"
    output = run("read_digit_strings", picture)
    found = re.search(r"test character error rate ([\d.]+)%", output)
    assert found
    assert float(found[1]) < 40
    height, width, _ = matplotlib.image.imread(picture).shape
    assert height > 500
    assert width > 1200


def test_decoding_of_read_digit_strings():
    strings = load("read_digit_strings")
    path = np.array([0, 4, 4, 0, 4, 2, 2, 1, 0, 10, 10, 3, 3])
    logits = np.tile(np.eye(len(strings.SYMBOLS), dtype=np.float32)[path], (3, 1, 1))
    paddings = np.arange(len(path)) >= np.array([[len(path)], [4], [1]])
    answers = strings.spell(*jaxloss.ctc_greedy_decode(logits, paddings))
    assert answers == ["331092", "3", ""]
    (answer,) = strings.spell(*jaxloss.ctc_greedy_decode(logits[:1, 1:], paddings[:1, 1:]))
    assert answer == "331092"


def test_read_digit_strings_transducer(tmp_path):
    picture = tmp_path / "both.png"
    output = run("read_digit_strings_transducer", picture)
    rates = r"error rate ([\d.]+)% with CTC and ([\d.]+)% with the transducer"
    found = re.search(rates, output)
    assert found
    assert all(float(rate) < 40 for rate in found.groups())
    height, width, _ = matplotlib.image.imread(picture).shape
    assert height > 500
    assert width > 1200


@pytest.fixture(scope="module")
def transducer():
    """An example of a model that says something, and lines."""
    example = load("read_digit_strings_transducer")
    model = example.Transducer(example.Network(nnx.Rngs(0)), nnx.Rngs(1))
    model.joiner.kernel[...] *= 20
    images, _, labels, _ = example.strings.digits()
    lines = example.strings.write(np.random.default_rng(0), 6, images, labels)
    return example, model, lines


def test_alignment_of_read_digit_strings_transducer(transducer):
    """Each label is read once, in its order, and none behind the end of the line."""
    example, model, lines = transducer
    found = np.asarray(example.alignment(model, lines))
    there = ~lines.label_paddings
    np.testing.assert_allclose(np.sum(found, 1), there, atol=1e-5)
    assert np.all(found >= 0)
    assert not np.any(found * lines.logit_paddings[..., None])
    mean = np.sum(found * np.arange(found.shape[1])[:, None], 1)
    assert np.all(np.diff(mean)[there[:, 1:]] > -1e-4)


def test_reading_of_read_digit_strings_transducer(transducer):
    """As one line, frame and symbol after the other."""
    example, model, lines = transducer
    labels, missing = map(np.asarray, example.read(model, lines))
    frames = np.asarray(model.frames(lines))
    for n, padding in enumerate(lines.logit_paddings):
        said = []
        for frame in frames[n][~padding]:
            for _ in range(example.MOST):
                last = jnp.array(said[-1] if said else 0)
                logits = model.logits(frame, model.before(last, jnp.array(len(said))))
                if not (symbol := int(jnp.argmax(logits))):
                    break
                said.append(symbol)
        assert said
        assert labels[n][~missing[n]].tolist() == said


def test_training_and_test_lines_share_no_digit():
    images, test_images, labels, test_labels = load("read_digit_strings").digits()
    assert (len(images), len(test_images)) == (len(labels), len(test_labels))
    assert not {x.tobytes() for x in images} & {x.tobytes() for x in test_images}


@pytest.mark.parametrize("gap", [-1, 3])
def test_lines_of_read_digit_strings_are_complete(gap, monkeypatch):
    strings = load("read_digit_strings")
    monkeypatch.setattr(strings, "NOISE", 0.0)
    monkeypatch.setattr(strings, "GAPS", (gap, gap))
    digit = np.ones((1, 8, 8), np.float32)
    lines = strings.write(np.random.default_rng(0), 50, digit, np.full(1, 7, np.int32))
    truths = strings.truths(lines)
    assert {*truths} == {"7" * length for length in range(3, 9)}
    ink = np.sum(lines.images.reshape(50, strings.HEIGHT, -1, strings.STRIDE), (1, 3))
    inside = np.sum(ink, 1, where=~lines.logit_paddings)
    np.testing.assert_array_equal(inside, [digit.size * len(truth) for truth in truths])
