"""The examples run, and their losses are interchangeable."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import optax
import pytest
from flax import nnx

import jaxloss

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def find_examples(monkeypatch):
    """Some import another one, which stands beside them where they are run as scripts."""
    monkeypatch.syspath_prepend(EXAMPLES)


def load(name):
    """An example as a module, which may import its neighbours as it does when it is run."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("options", [[], ["--linen", "--loss", "multi_margin"]], ids=str)
def test_train_digits(options, tmp_path):
    picture = tmp_path / "digits.png"
    done = subprocess.run(
        [sys.executable, EXAMPLES / "train_digits.py", "--quick", "--out", picture, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"test accuracy ([\d.]+)%", done.stdout)
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


def test_read_digit_strings(tmp_path):
    picture = tmp_path / "lines.png"
    done = subprocess.run(
        [sys.executable, EXAMPLES / "read_digit_strings.py", "--quick", "--out", picture],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"test character error rate ([\d.]+)%", done.stdout)
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


def test_train_language_model_on_one_device_and_on_two(tmp_path):
    processes, found = {}, {}
    for devices in 1, 2:
        options = ["--quick", "--devices", str(devices), "--out", tmp_path / f"{devices}.png"]
        processes[devices] = subprocess.Popen(
            [sys.executable, EXAMPLES / "train_language_model.py", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    for devices, process in processes.items():
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        perplexities = re.search(r"test perplexity ([\d.]+), unigram ([\d.]+)", output)
        memory = re.search(r"(\d+) MB, with all logits (\d+) MB", output)
        assert perplexities
        assert memory
        found[devices] = [float(number) for number in perplexities.groups() + memory.groups()]
        height, width, _ = matplotlib.image.imread(tmp_path / f"{devices}.png").shape
        assert height > 500
        assert width > 1200
    perplexity, unigram, fused, unfused = found[1]
    assert perplexity < 0.7 * unigram
    assert fused < 0.8 * unfused
    np.testing.assert_allclose(found[2], found[1], rtol=0.02)


def test_text_of_train_language_model():
    language = load("train_language_model")
    assert language.tokenize("It's 42.\n") == ("it's", "42", ".")
    known = language.vocabulary([("a", "b", "a"), ("c", "a", "b")], 4)
    assert known == [language.UNKNOWN, language.END, "a", "b"]
    stream = language.encode([("a", "c"), ("b",)], known)
    np.testing.assert_array_equal(stream, [1, 2, 0, 1, 3, 1])
    train, test = language.paragraphs()
    assert len(train) > 5 * len(test) > 1000
    assert not {*train} & {*test}


def test_unigram_perplexity_of_train_language_model():
    language = load("train_language_model")
    counts = np.array([3, 0, 1]) + 1  # Of 7.
    perplexity = language.unigram_perplexity(np.array([0, 2, 0, 0]), np.array([[0, 1]]), 3)
    assert perplexity == pytest.approx(7 / np.sqrt(counts[0] * counts[1]))


def test_train_language_model_shards_its_vocabulary():
    language = load("train_language_model")
    model = language.Network(64, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    language.shard_vocabulary(2, model, optimizer)
    shapes = [
        (array.shape[0], array.addressable_shards[0].data.shape[0])
        for path, array in jax.tree_util.tree_leaves_with_path(nnx.state((model, optimizer)))
        if "table" in jax.tree_util.keystr(path)
    ]
    assert shapes == 3 * [(64, 32)]  # The table and its two moments.


def run(name, out, *options):
    """What a quick run of an example prints."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", "--quick", "--out", out, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


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
    output = run("accumulate_gradients", picture, "--devices", "2")
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


def test_distill_language_model(tmp_path):
    picture = tmp_path / "distillation.png"
    output = run("distill_language_model", picture)
    found = re.search(
        r"test perplexity ([\d.]+), without the teacher ([\d.]+), of the teacher ([\d.]+)", output
    )
    assert found
    taught, alone, teacher = map(float, found.groups())
    assert teacher < taught < alone
    height, width, _ = matplotlib.image.imread(picture).shape
    assert height > 500
    assert width > 1200


def test_share_of_the_teacher_in_distill_language_model():
    distill = load("distill_language_model")
    model, teacher = (distill.Network(50, nnx.Rngs(n), 8 + n) for n in range(2))
    batch = jnp.asarray(np.random.default_rng(0).integers(50, size=(2, 5)), jnp.int32)
    model.dropout.rate = 0.0

    def loss(*lesson, model=model):
        return float(distill.loss(model, teacher, batch, distill.Lesson(*lesson)))

    text, taught = loss(0.0, 1.0, 0.0), loss(1.0, 1.0, 0.0)
    assert text == pytest.approx(float(distill.language.loss(model, batch)))
    assert loss(0.25, 1.0, 0.0) == pytest.approx(0.75 * text + 0.25 * taught)
    # A student in the teacher's place has nothing to learn from it, but for its dropout.
    assert loss(1.0, 2.0, 0.5, model=teacher) > 1e-5
    teacher.dropout.rate = 0.0
    assert loss(1.0, 2.0, 0.5, model=teacher) == pytest.approx(0, abs=1e-6)


def test_tune_language_model(tmp_path):
    picture = tmp_path / "tuning.png"
    output = run("tune_language_model", picture)
    shares = re.search(r"different words with p: ([\d.]+)%, before ([\d.]+)%", output)
    nats = re.search(r"KL ([\d.]+), entropy ([\d.]+), before ([\d.]+) nats", output)
    assert shares
    assert nats
    after, before = map(float, shares.groups())
    assert after > 2 * before
    kl, entropy, entropy_before = map(float, nats.groups())
    assert kl > 0.1
    assert abs(entropy - entropy_before) < 2  # No single text has won.
    height, width, _ = matplotlib.image.imread(picture).shape
    assert height > 500
    assert width > 1200


def test_rewards_of_tune_language_model():
    tune = load("tune_language_model")
    texts = np.zeros((3, tune.PROMPT + tune.WORDS), np.int32)
    texts[:, : tune.PROMPT] = 4  # Prompts earn nothing.
    texts[1, tune.PROMPT :] = 3
    texts[2, [tune.PROMPT, -2, -1]] = 3, 4, 3
    found = tune.rewards(jnp.asarray(texts), jnp.array([0, 0, 0, 1, 1], jnp.float32))
    np.testing.assert_allclose(found * tune.WORDS, [0, 1, 2], rtol=1e-6)


def test_advantages_of_tune_language_model():
    tune = load("tune_language_model")
    earned = np.random.default_rng(0).random((3, tune.GROUP), np.float32)
    earned[1] = 0.3  # All alike: nothing to learn.
    found = np.asarray(tune.advantages(jnp.asarray(earned.ravel()))).reshape(3, -1)
    np.testing.assert_allclose(found[1], 0, atol=1e-3)
    for n in 0, 2:
        expected = (earned[n] - earned[n].mean()) / earned[n].std()
        np.testing.assert_allclose(found[n], expected, rtol=1e-4, atol=1e-5)


def test_what_tune_language_model_knows_of_its_words():
    """Words are written by the softmax that is compared, at the places where it is."""
    tune = load("tune_language_model")
    model, start = (tune.Network(6, nnx.Rngs(n)) for n in range(2))
    model.table[...] *= 8  # Far from uniform.
    beginnings = jnp.zeros((4000, tune.PROMPT), jnp.int32).at[:, -1].set(3)
    texts = tune.write(model, beginnings, jax.random.key(0))
    assert texts.shape == (4000, tune.PROMPT + tune.WORDS)
    np.testing.assert_array_equal(texts[:, : tune.PROMPT], beginnings)
    found = tune.compare(model, start, texts)
    first, p = np.asarray(texts[:, tune.PROMPT]), np.exp(np.asarray(found.log_prob[:, 0]))
    assert len({*first}) > 2
    for word in {*first}:
        np.testing.assert_allclose(np.mean(first == word), p[first == word][0], atol=0.04)
    # The mean of -log p of what was written is the entropy, that of the difference of both is KL.
    other = tune.compare(start, start, texts)
    gap = np.mean(found.log_prob - other.log_prob)
    assert gap > 0.1
    np.testing.assert_allclose(gap, np.mean(found.divergence), atol=0.03)
    np.testing.assert_allclose(-np.mean(found.log_prob), np.mean(found.entropy), atol=0.03)
    np.testing.assert_allclose(other.divergence, 0, atol=1e-6)


def test_prompts_of_tune_language_model():
    tune = load("tune_language_model")
    stream = np.array([1, 5, 6, 7, 8, 1, 9, 1, 4, 3, 2, 1, 5])
    found = tune.prompts(stream, [tune.language.UNKNOWN, tune.END])
    np.testing.assert_array_equal(found, [[1, 5, 6, 7], [1, 9, 1, 4], [1, 4, 3, 2]])
