"""The examples with language models run, and their parts are what they are called."""

import re

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import optax
import pytest
from example_scripts import load, run, run_alone
from flax import nnx


def test_train_language_model_on_one_device_and_on_two(tmp_path):
    found = {}
    for devices, start in {1: run, 2: run_alone}.items():
        picture = tmp_path / f"{devices}.png"
        output = start("train_language_model", picture, "--devices", str(devices))
        perplexities = re.search(r"test perplexity ([\d.]+), unigram ([\d.]+)", output)
        memory = re.search(r"(\d+) MB, with all logits (\d+) MB", output)
        assert perplexities
        assert memory
        found[devices] = [float(number) for number in perplexities.groups() + memory.groups()]
        height, width, _ = matplotlib.image.imread(picture).shape
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
