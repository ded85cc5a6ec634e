"""The functions of the page of policies beside their formulas, in numpy's float64."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

PAGE = pathlib.Path(__file__).parent.parent / "examples" / "policies" / "README.md"


@pytest.fixture(scope="module")
def page():
    """What the page defines."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    code = re.sub(r"^print\(.*$", "", "\n".join(blocks), flags=re.MULTILINE)
    found = {}
    exec(compile(code, str(PAGE), "exec"), found)
    return found


def log_softmax(features, kernel):
    logits = np.asarray(features, np.float64) @ np.asarray(kernel, np.float64).T
    peak = logits.max(-1, keepdims=True)
    return logits - peak - np.log(np.exp(logits - peak).sum(-1, keepdims=True))


def log_probs(page, name="hidden"):
    """Of all words, (N, T, C)."""
    return log_softmax(page[name], page["kernel"])


def chosen(page, name="hidden"):
    """Of the tokens, (N, T)."""
    return np.take_along_axis(log_probs(page, name), np.asarray(page["tokens"])[..., None], -1)[
        ..., 0
    ]


def present(page):
    """The places of the tokens that count."""
    return [(n, t) for n, t in np.ndindex(page["N"], page["T"]) if page["present"][n, t]]


def mean(page, values):
    return np.mean([values[place] for place in present(page)])


def clipped(page, advantages):
    ratios = np.exp(chosen(page) - chosen(page, "old_hidden"))
    gains = np.empty_like(ratios)
    for place, ratio in np.ndenumerate(ratios):
        gain = advantages[place]
        # Beyond the range there is nothing to win, but what is lost counts in full.
        limit = 1.2 if gain > 0 else 0.8
        best = min(ratio, limit) if gain > 0 else max(ratio, limit)
        gains[place] = best * gain
    return ratios, gains


def test_perplexity_and_accuracy(page):
    value, report = page["loss"](page["hidden"])
    expected = -mean(page, chosen(page))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(report["perplexity"], np.exp(expected), rtol=1e-5)
    right = np.argmax(log_probs(page), -1) == np.asarray(page["tokens"])
    np.testing.assert_allclose(report["accuracy"], mean(page, right), rtol=1e-6)


def test_what_is_padded_changes_no_loss(page):
    """Features of padding may hold anything."""
    spoiled = jnp.where(page["present"][..., None], page["hidden"], jnp.nan)
    rewards = (page["rewards"],)
    losses = {
        "loss": lambda h: page["loss"](h)[0],
        "dpo": lambda h: page["dpo_loss"](h, page["reference_hidden"]),
        "ppo": lambda h: page["ppo_loss"](h, page["old"], page["advantages"])[0],
        "grpo": lambda h: page["grpo_loss"](h, page["old"], page["reference"], *rewards),
        "distillation": lambda h: page["distillation_loss"](h, page["teacher_hidden"]),
        "top K": lambda h: page["top_k_loss"](h, page["words"], page["teacher_log_probs"]),
    }
    for name, loss in losses.items():
        wanted = jax.value_and_grad(loss)(page["hidden"])
        found = jax.value_and_grad(loss)(spoiled)
        for x, y in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(x, y, err_msg=name)
            assert np.any(y), name


def test_dpo(page):
    def answer(name, n):
        return sum(chosen(page, name)[place] for place in present(page) if place[0] == n)

    gains = [answer("hidden", n) - answer("reference_hidden", n) for n in range(page["N"])]
    margins = [0.1 * (gains[n] - gains[n + 1]) for n in range(0, page["N"], 2)]
    expected = np.mean([np.log(1 + np.exp(-margin)) for margin in margins])
    found = page["dpo_loss"](page["hidden"], page["reference_hidden"])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # The reference is what it is.
    gradient = jax.grad(page["dpo_loss"], 1)(page["hidden"], page["reference_hidden"])
    np.testing.assert_array_equal(gradient, 0)


def test_ppo(page):
    advantages = np.asarray(page["advantages"], np.float64)
    ratios, gains = clipped(page, advantages)
    outside = [place for place in present(page) if abs(ratios[place] - 1) > 0.2]
    assert {bool(advantages[place] > 0) for place in outside} == {True, False}
    p = np.exp(log_probs(page))
    entropy = -np.sum(p * log_probs(page), -1)
    value, report = page["ppo_loss"](page["hidden"], page["old"], page["advantages"])
    np.testing.assert_allclose(value, mean(page, -gains - 0.01 * entropy), rtol=1e-4)
    np.testing.assert_allclose(report["moved"], mean(page, -np.log(ratios)), rtol=1e-4)


def test_grpo(page):
    rewards = np.asarray(page["rewards"], np.float64)
    advantages = np.empty_like(rewards)
    for n in range(0, len(rewards), 2):
        group = rewards[n : n + 2]
        advantages[n : n + 2] = (group - group.mean()) / (group.std() + 1e-4)
    _, gains = clipped(page, np.repeat(advantages[:, None], page["T"], 1))
    ratio = np.exp(chosen(page, "reference_hidden") - chosen(page))
    losses = 0.04 * (ratio - 1 - np.log(ratio)) - gains
    answers = [
        [losses[place] for place in present(page) if place[0] == n] for n in range(page["N"])
    ]
    expected = np.mean([np.mean(answer) for answer in answers])
    found = page["grpo_loss"](page["hidden"], page["old"], page["reference"], page["rewards"])
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def divergence(log_p, log_q):
    return np.sum(np.exp(log_p) * (log_p - log_q), -1)


def test_top_k_distillation(page):
    student = np.take_along_axis(log_probs(page), np.asarray(page["words"]), -1)
    teacher = np.asarray(page["teacher_log_probs"], np.float64)
    parts = [
        np.concatenate([kept, np.log(1 - np.exp(kept).sum(-1, keepdims=True))], -1)
        for kept in (teacher, student)
    ]
    found = page["top_k_loss"](page["hidden"], page["words"], page["teacher_log_probs"])
    np.testing.assert_allclose(found, mean(page, divergence(*parts)), rtol=1e-5)


def test_top_k_of_all_words_but_one_is_the_whole_divergence(page):
    whole = log_softmax(page["teacher_hidden"], page["teacher_kernel"])
    teacher, words = jax.lax.top_k(jnp.float32(whole), page["C"] - 1)
    found = page["top_k_loss"](page["hidden"], words, teacher)
    expected = page["distillation_loss"](page["hidden"], page["teacher_hidden"], 0.0)
    # The least of the teacher's words is less than the floor of the rest.
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_top_k_loss_of_a_certain_teacher_and_student_is_finite(page):
    words = jnp.zeros((page["N"], page["T"], 2), int) + jnp.arange(2)[None, None]
    sure = jnp.zeros((page["N"], page["T"], 2)) + jnp.array([0.0, -40.0])[None, None]
    certain = 100 * page["kernel"][0] / jnp.sum(page["kernel"][0] ** 2)
    certain = jnp.zeros_like(page["hidden"]) + certain[None, None]
    value, gradient = jax.value_and_grad(page["top_k_loss"])(certain, words, sure)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_distillation(beta, page):
    p, q = log_softmax(page["teacher_hidden"], page["teacher_kernel"]), log_probs(page)
    middle = np.log(beta * np.exp(p) + (1 - beta) * np.exp(q))
    expected = beta * divergence(p, middle) + (1 - beta) * divergence(q, middle)
    if beta in (0.0, 1.0):
        expected = divergence(q, p) if beta else divergence(p, q)
    found = page["distillation_loss"](page["hidden"], page["teacher_hidden"], beta)
    np.testing.assert_allclose(found, mean(page, expected), rtol=1e-5)
