"""The examples run, and their losses are interchangeable."""

import re

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from example_scripts import load, run, run_alone
from flax import nnx


@pytest.mark.parametrize("options", [[], ["--linen", "--loss", "multi_margin"]], ids=str)
def test_train_digits(options, tmp_path):
    picture = tmp_path / "digits.png"
    found = re.search(r"test accuracy ([\d.]+)%", run("train_digits", picture, *options))
    assert found
    assert float(found[1]) > 80
    height, width, _ = matplotlib.image.imread(picture).shape
    assert height > 300
    assert width > 800


@pytest.mark.parametrize("linen", [False, True], ids=["nnx", "linen"])
def test_every_loss_of_train_digits_has_a_gradient(linen):
    digits = load("train_digits")
    outputs = jnp.asarray(np.random.default_rng(0).normal(size=(4, 10)), jnp.float32)
    labels = jnp.array([3, 1, 4, 1])
    for name in digits.LOSSES:
        value, gradient = jax.value_and_grad(digits.loss_function(name, linen))(outputs, labels)
        assert np.isfinite(value), name
        assert np.all(np.isfinite(gradient)), name
        assert np.any(gradient), name


def test_gallery(tmp_path):
    found = re.search(r"derivatives within (\S+) of the slopes", run("gallery", tmp_path))
    assert found
    assert float(found[1]) < 0.02
    sizes = {p.stem: matplotlib.image.imread(p).shape[:2] for p in tmp_path.glob("*.png")}
    assert {*sizes} == {"elementwise", "margins", "cross_entropy", "beyond_torch", "ctc", "rnnt"}
    assert all(height >= 700 and width >= 1000 for height, width in sizes.values())


def test_surfaces_of_gallery_have_the_slopes_of_their_arrows():
    gallery = load("gallery")
    for panel in [*gallery.margins(), *gallery.cross_entropy(), *gallery.beyond_torch()]:
        if not isinstance(panel, gallery.Surface):
            continue
        low, high = panel.span
        x, y = low + (high - low) * np.random.default_rng(0).random((2, 20), np.float32)
        loss = jax.jit(jax.vmap(panel.loss))
        step = np.float32(1e-2)
        right, up = jax.jit(jax.vmap(jax.grad(panel.loss, (0, 1))))(x, y)
        slopes = loss(x + step, y) - loss(x - step, y), loss(x, y + step) - loss(x, y - step)
        error = np.maximum(
            *(np.abs(a - b / (2 * step)) for a, b in zip((right, up), slopes, strict=True))
        )
        # A few places may be at kinks.
        assert np.median(error) < 1e-3, panel.title


@pytest.mark.parametrize("loss", ["triplet", "cosine"])
def test_learn_embedding(loss, tmp_path):
    picture = tmp_path / "embedding.png"
    output = run("learn_embedding", picture, "--loss", loss)
    found = re.search(r"neighbours ([\d.]+)%, before training ([\d.]+)%", output)
    assert found
    after, before = map(float, found.groups())
    assert after > 95
    assert after > before + 10
    height, width, _ = matplotlib.image.imread(picture).shape
    assert height > 400
    assert width > 1200


@pytest.mark.parametrize("loss", ["info_nce", "sigmoid"])
def test_match_halves(loss, tmp_path):
    picture = tmp_path / "halves.png"
    output = run("match_halves", picture, "--loss", loss)
    found = re.search(r"found first ([\d.]+)%, before training ([\d.]+)%", output)
    assert found
    after, before = map(float, found.groups())
    assert before < 1
    assert after > 2
    height, width, _ = matplotlib.image.imread(picture).shape
    assert height > 400
    assert width > 1200


def test_what_match_halves_finds():
    halves = load("match_halves")
    similarity = np.array([[0.9, 0.1, 0.2], [0.8, 0.5, 0.6], [0.0, 0.1, 0.7]])
    # Of the upper halves the second has two before its own, of the lower ones none has.
    assert halves.found(similarity, 1) == pytest.approx(5 / 6)
    assert halves.found(similarity, 2) == pytest.approx(5 / 6)
    assert halves.found(similarity, 3) == 1


def test_triplets_of_learn_embedding():
    embedding = load("learn_embedding")
    labels = np.arange(200) * 7 % 10
    anchors, same, other = labels[embedding.triplets(np.random.default_rng(0), labels)]
    np.testing.assert_array_equal(same, anchors)
    assert np.all(other != anchors)
    assert {*other} == {*range(10)}


def test_predict_uncertainty(tmp_path):
    picture = tmp_path / "uncertainty.png"
    output = run("predict_uncertainty", picture)
    found = re.search(
        r"NLL ([\d.]+) nats, with one variance ([\d.]+) nats; ([\d.]+)% of the truth in 90%", output
    )
    assert found
    own, constant, covered = map(float, found.groups())
    assert own < constant - 0.03
    assert constant < 1.3  # Without features it would be about 1.42.
    assert 84 < covered < 96
    height, width, _ = matplotlib.image.imread(picture).shape
    assert height > 400
    assert width > 1200


def test_coverage_of_predict_uncertainty():
    uncertainty = load("predict_uncertainty")
    truth = np.random.default_rng(0).normal(3, 2, 10000)
    result = uncertainty.Result([], 0.0, np.full(10000, 3.0), np.full(10000, 2.0))
    expected = np.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(uncertainty.coverage(result, truth, expected), expected, atol=0.02)


def test_autoencode_digits(tmp_path):
    picture = tmp_path / "autoencoder.png"
    output = run("autoencode_digits", picture)
    found = re.search(
        r"reconstruction ([\d.]+) \+ code ([\d.]+) nats per image, before training ([\d.]+)", output
    )
    assert found
    reconstruction, code, before = map(float, found.groups())
    assert reconstruction + code < 0.5 * before
    # What the codes of different images do not cost, they do not tell.
    assert 5 < code < 60
    height, width, _ = matplotlib.image.imread(picture).shape
    assert height > 500
    assert width > 1200


def test_codes_of_autoencode_digits_cost_their_divergence():
    autoencoder = load("autoencode_digits")
    model = autoencoder.Network(nnx.Rngs(0))
    images = jnp.asarray(autoencoder.digits()[1][:3])
    _, cost = autoencoder.terms(model, images, jax.random.key(0))
    mean, log_variance = (np.asarray(part)[..., None] for part in model.encode(images))
    x = np.linspace(-12, 12, 4001)
    log_p = -0.5 * ((x - mean) ** 2 / np.exp(log_variance) + log_variance)
    density = np.exp(log_p) / np.sqrt(2 * np.pi)
    divergence = np.trapezoid(density * (log_p + x**2 / 2), x).sum(-1)
    np.testing.assert_allclose(cost, divergence, rtol=1e-4)


def test_accumulate_gradients(tmp_path):
    picture = tmp_path / "gradients.png"
    output = run_alone("accumulate_gradients", picture, "--devices", "2")
    found = re.search(r"gradient off by (\d+)% with means of means, by at most (\S+)", output)
    assert found
    assert float(found[1]) > 10
    assert float(found[2]) < 1e-5
    losses = [float(number) for number in re.findall(r"loss off by up to (\S+),", output)]
    assert min(losses[:2]) > 0.01
    assert max(losses[2:]) < 1e-5
    height, width, _ = matplotlib.image.imread(picture).shape
    assert height > 400
    assert width > 1200


def test_segment_digits(tmp_path):
    picture = tmp_path / "regions.png"
    output = run("segment_digits", picture)
    numbers = (
        r"IoU (\S+) with cross entropy \((\S+) at .*\)"
        r" and (\S+) with Dice \+ focal \((\S+) at .*\); (\S+)% of the pixels"
    )
    found = re.search(numbers, output)
    assert found
    cross_entropy, best_cross_entropy, both, best_both, share = map(float, found.groups())
    assert 1 < share < 2  # Which is the IoU of finding all pixels.
    assert both > cross_entropy + 0.02
    assert both > 0.25
    assert best_cross_entropy >= cross_entropy
    assert best_both >= both
    height, width, _ = matplotlib.image.imread(picture).shape
    assert height > 500
    assert width > 1200


def test_canvases_of_segment_digits(monkeypatch):
    segments = load("segment_digits")
    monkeypatch.setattr(segments, "NOISE", 0.0)
    images, test_images = segments.digits()
    assert not {x.tobytes() for x in images} & {x.tobytes() for x in test_images}
    canvases = segments.paint(np.random.default_rng(0), 50, images)
    assert np.all(canvases.images[canvases.truth] > segments.INK)
    rows, columns = (np.any(canvases.truth, axis).sum(1) for axis in (2, 1))
    assert max(rows.max(), columns.max()) <= segments.SIZE
    assert min(np.sum(canvases.truth, (1, 2))) > 10
    clutter = np.sum((canvases.images > segments.INK) & ~canvases.truth, (1, 2))
    assert np.median(clutter) > 2 * np.median(np.sum(canvases.truth, (1, 2)))


def test_overlap_of_segment_digits():
    segments = load("segment_digits")
    found, truth = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert segments.iou(found, truth) == pytest.approx(1 / 3)
    assert segments.iou(truth, truth) == 1


def test_network_of_segment_digits_follows_what_moves():
    segments = load("segment_digits")
    model = segments.Network(nnx.Rngs(0))
    image = np.zeros((segments.SIDE, segments.SIDE), np.float32)
    image[16:20, 14:19] = np.random.default_rng(0).random((4, 5), np.float32)
    moved = np.roll(image, (2, 4), (0, 1))
    logits, of_moved = model(jnp.asarray(np.stack([image, moved])))[:, 0]
    inside = np.s_[12:28, 12:28]
    np.testing.assert_allclose(
        np.roll(of_moved, (-2, -4), (0, 1))[inside], logits[inside], rtol=1e-4
    )
    # A block of 2 x 2 sees 1 pixel around by `conv1`, and 2, 4 and 2 by the others.
    noise = jnp.asarray(np.random.default_rng(1).normal(size=image.shape), jnp.float32)
    seen = np.asarray(jax.grad(lambda x: model(x[None])[0, 0, 21, 20])(noise))
    rows, columns = (np.flatnonzero(np.any(seen, axis)) for axis in (1, 0))
    assert (rows.min(), rows.max()) == (columns.min(), columns.max()) == (20 - 9, 21 + 9)
