"""FocalLoss and DiceLoss on images: layout, kinds of targets, what is ignored, bad labels."""

# pyright: reportArgumentType=false
# What type checkers do not take is refused.

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import NamedSharding, PartitionSpec

import jaxloss
from jaxloss import nnx

N, C, H, W = 3, 4, 5, 6
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(N, C, H, W)).astype(np.float32)
LABELS = RNG.integers(0, C, (N, H, W))
LABELS[0, :2] = 255  # Ignored below, and one example wholly.
LABELS[2] = 255
ANSWERS = RNG.integers(0, 2, (N, C, H, W))
ANSWERS[0, 1, :2] = 255
ANSWERS[1, 2] = 255
WEIGHT = np.array([0.5, 2.0, 1.0, 0.25], np.float32)
KINDS = {"indices": LABELS, "answers": ANSWERS}
REDUCTIONS = ("none", "mean", "sum")
each_kind = pytest.mark.parametrize("kind", KINDS)
both = pytest.mark.parametrize("cls", [nnx.FocalLoss, nnx.DiceLoss])


def image_of(target, n, c):
    """The truth and the probability of each pixel of an example and class that takes part."""
    for h in range(H):
        for w in range(W):
            x = LOGITS[n, :, h, w].astype(float)
            if target.ndim == 3 and target[n, h, w] != 255:
                yield target[n, h, w] == c, np.exp(x[c]) / np.exp(x).sum()
            if target.ndim == 4 and target[n, c, h, w] != 255:
                yield target[n, c, h, w] == 1, 1 / (1 + np.exp(-x[c]))


def reduced(losses, taken, reduction):
    losses = np.where(taken, losses, 0)
    return {"none": losses, "sum": losses.sum(), "mean": losses.sum() / taken.sum()}[reduction]


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@each_kind
def test_focal_loss_of_images(kind, weight):
    target = KINDS[kind]
    losses = np.zeros(target.shape)
    for place in np.ndindex(target.shape):
        if target[place] != 255:
            n, *c, h, w = place
            x = LOGITS[n, :, h, w].astype(float)
            if c:
                (c,), factor = c, 0.25 if target[place] else 0.75
                right = 1 / (1 + np.exp(-x[c] if target[place] else x[c]))
            else:
                c, factor = target[place], 1
                right = np.exp(x[c]) / np.exp(x).sum()
            factor *= 1 if weight is None else weight[c]
            losses[place] = factor * (1 - right) ** 1.5 * -np.log(right)
    options = {"alpha": 0.25} if kind == "answers" else {}
    for reduction in REDUCTIONS:
        loss = nnx.FocalLoss(
            gamma=1.5, weight=weight, ignore_index=255, reduction=reduction, **options
        )
        wanted = reduced(losses, target != 255, reduction)
        np.testing.assert_allclose(loss(LOGITS, target), wanted, rtol=2e-6)


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("ignore_background", [False, True], ids=["all", "foreground"])
@pytest.mark.parametrize("batch", [False, True], ids=["each", "batch"])
@each_kind
def test_dice_loss_of_images(kind, batch, ignore_background, weight):
    target = KINDS[kind]
    groups = [[*range(N)]] if batch else [[n] for n in range(N)]
    first, smooth = int(ignore_background), 0.5
    losses, taken = np.zeros((2, len(groups), C - first))
    for g, c in np.ndindex(losses.shape):
        pixels = [pixel for n in groups[g] for pixel in image_of(target, n, c + first)]
        common = sum(p * t for t, p in pixels)
        both = sum(p + t for t, p in pixels)
        losses[g, c] = 1 - (2 * common + 2 * smooth) / (both + 2 * smooth)
        losses[g, c] *= 1 if weight is None else weight[c + first]
        taken[g, c] = len(pixels) > 0
    if batch:
        losses, taken = losses[0], taken[0]
    for reduction in REDUCTIONS:
        loss = nnx.DiceLoss(
            smooth=smooth,
            batch=batch,
            ignore_background=ignore_background,
            weight=weight,
            ignore_index=255,
            reduction=reduction,
        )
        wanted = reduced(losses, taken, reduction)
        np.testing.assert_allclose(loss(LOGITS, target), wanted, rtol=5e-6)


@both
def test_the_axis_of_a_single_class_may_be_left_out(cls):
    loss, one, answers = cls(), LOGITS[:, :1], ANSWERS[:, :1] % 2
    wanted = loss(one, answers)
    for same in (answers[:, 0], answers[:, 0] == 1, answers[:, 0].astype(np.uint8)):
        np.testing.assert_array_equal(loss(one, same), wanted)
    np.testing.assert_array_equal(loss(one, answers[:, 0].astype(np.float32)), wanted)


@both
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.float32, jnp.bfloat16])
def test_what_is_ignored_may_hold_anything(cls, dtype):
    answers = jnp.asarray(ANSWERS).astype(dtype)
    void = ANSWERS == 255
    spoiled = np.where(void, np.nan, LOGITS).astype(np.float32)
    loss = jax.jit(jax.value_and_grad(cls(ignore_index=255)))
    wanted = cls(ignore_index=255)(LOGITS, ANSWERS)
    for logits in (LOGITS, spoiled):
        value, gradient = loss(logits, answers)
        np.testing.assert_array_equal(value, wanted)
        np.testing.assert_array_equal(np.asarray(gradient)[void], 0)
        assert np.all(np.isfinite(gradient))


@both
@each_kind
def test_nothing_that_takes_part_is_nan_with_gradient_0(cls, kind):
    nothing = np.full_like(KINDS[kind], -100)
    value, gradient = jax.jit(jax.value_and_grad(cls()))(LOGITS, nothing)
    assert np.isnan(value)
    np.testing.assert_array_equal(gradient, 0)
    assert np.all(np.asarray(cls(reduction="none")(LOGITS, nothing)) == 0)


@pytest.mark.parametrize("bad", [-1, C, 2**31 - 1, 2**32])
@both
def test_a_bad_label_is_nan_in_its_own_example(cls, bad):
    labels = np.array(LABELS % C)
    labels[1, 2, 3] = bad
    loss = cls(reduction="none")

    @jax.jit
    def derive(x):
        value, pullback = jax.vjp(lambda x: loss(x, labels), x)
        return value, *pullback(jnp.ones_like(value))

    value, gradient = derive(LOGITS)
    spoiled = np.zeros(value.shape, bool)
    spoiled[(1, 2, 3) if cls is nnx.FocalLoss else 1] = True
    np.testing.assert_array_equal(np.isnan(value), spoiled)
    places = np.any(np.isnan(gradient), 1)
    np.testing.assert_array_equal(
        places,
        spoiled
        if cls is nnx.FocalLoss
        else np.broadcast_to(np.arange(N)[:, None, None] == 1, places.shape),
    )


@both
def test_faults_are_named(cls):
    name = cls.__name__

    def fails(error, words, loss, *args):
        with pytest.raises(error, match=f"^{name}: {words}"):
            loss(*args)

    labels = LABELS % C
    last = np.moveaxis(LOGITS, 1, -1)
    fails(ValueError, r"`target` must have shape .*moveaxis\(input, -1, 1\)", cls(), last, labels)
    fails(TypeError, "`input` must be a floating-point array", cls(), ANSWERS, ANSWERS)
    fails(TypeError, "`target` must be an array of integers", cls(), LOGITS, labels + 0.5)
    wrong = cls(weight=np.ones(3))
    for target in (labels, ANSWERS):
        fails(ValueError, r"`weight` must have shape \(4,\), got \(3,\)", wrong, LOGITS, target)
    fails(TypeError, "`ignore_index` must be an integer", cls(ignore_index=None), LOGITS, ANSWERS)
    for target, rule in ((labels + 1, "be a class in"), (ANSWERS, "be probabilities")):
        error, _ = checkify.checkify(jax.jit(cls()))(LOGITS, target)
        assert f"{name}: `target` must {rule}" in str(error.get())


def test_options_out_of_range_are_refused():
    for loss, target, words in (
        (nnx.FocalLoss(alpha=0.25), LABELS % C, "FocalLoss: `alpha` must be None for class ind"),
        (nnx.FocalLoss(alpha=1.5), ANSWERS, "FocalLoss: `alpha` must be between 0 and 1, got 1.5"),
        (nnx.FocalLoss(alpha=np.ones(C)), ANSWERS, "FocalLoss: `alpha` must be a number, got sh"),
        (nnx.FocalLoss(gamma=-1), ANSWERS, "FocalLoss: `gamma` must be 0 or more, got -1"),
        (nnx.DiceLoss(smooth=-1.0), ANSWERS, "DiceLoss: `smooth` must be 0 or more, got -1.0"),
    ):
        with pytest.raises(ValueError, match=words):
            loss(LOGITS, target)
    with pytest.raises(ValueError, match=r"DiceLoss: `input` must have shape \(N, C\) or"):
        nnx.DiceLoss()(LOGITS[0, :, 0, 0], 1)


def test_focal_loss_of_one_example():
    scores = LOGITS[0, :, 0, 0]
    np.testing.assert_array_equal(
        nnx.FocalLoss()(scores, 2), jaxloss.softmax_focal_loss_with_integer_labels(scores, 2)
    )


@both
@each_kind
def test_programs(cls, kind):
    """Jitted, of other hyper-parameters, over stacked batches, in halves."""
    logits, target = jnp.asarray(LOGITS), jnp.asarray(KINDS[kind] % 2)
    number = "gamma" if cls is nnx.FocalLoss else "smooth"

    traces = []

    @jax.jit
    def loss(logits, target, value):
        traces.append(value)
        return cls(**{number: value})(logits, target)

    for value in (0.5, 3.0):
        wanted = cls(**{number: value})(logits, target)
        np.testing.assert_allclose(loss(logits, target, value), wanted, rtol=1e-6)
    assert len(traces) == 1
    stacked = jax.vmap(loss, (0, None, None))(jnp.stack([logits, 2 * logits]), target, 1.5)
    each = [cls(**{number: 1.5})(x, target) for x in (logits, 2 * logits)]
    np.testing.assert_allclose(stacked, each, rtol=1e-6)

    half = logits.astype(jnp.bfloat16)
    value, gradient = jax.value_and_grad(loss)(half, target, 2.0)
    assert (value.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(value, loss(half.astype(jnp.float32), target, 2.0), rtol=1e-6)


@both
@each_kind
def test_derivatives(cls, kind, x64):
    logits, direction = np.random.default_rng(1).normal(size=(2, *LOGITS.shape))
    loss = cls(ignore_index=255)
    step = 1e-5

    @jax.jit
    def slope(x):
        return jax.jvp(lambda x: loss(x, KINDS[kind]), (x,), (jnp.asarray(direction),))

    @jax.jit
    def derivatives(x):
        gradient = jax.grad(lambda x: loss(x, KINDS[kind]))(x)
        return jax.jvp(slope, (x,), (direction,)), gradient, jax.grad(lambda x: slope(x)[1])(x)

    (value, second), gradient, curvature = derivatives(logits)
    ahead, behind = slope(logits + step * direction), slope(logits - step * direction)
    for got, a, b in zip(second, ahead, behind, strict=True):
        np.testing.assert_allclose(got, (a - b) / (2 * step), rtol=1e-6)
    np.testing.assert_allclose(np.vdot(gradient, direction), value[1], rtol=1e-10)
    np.testing.assert_allclose(np.vdot(curvature, direction), second[1], rtol=1e-8)


@both
def test_examples_over_devices(cls):
    mesh = jax.make_mesh((len(jax.devices()),), ("data",))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    logits, labels = (np.concatenate([x[:2]] * len(jax.devices())) for x in (LOGITS, LABELS % C))
    wanted = cls()(logits, labels)
    got = jax.jit(cls())(*(jax.device_put(x, spread) for x in (logits, labels)))
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


FLAT = LOGITS[:, :1].reshape(-1).astype(float)
TRUTH = ANSWERS[:, :1].reshape(-1) % 2
P = 1 / (1 + np.exp(-FLAT))
RIGHT = np.where(TRUTH, P, 1 - P)
SOFTMAX = np.exp(LOGITS.astype(float)) / np.exp(LOGITS.astype(float)).sum(1, keepdims=True)
HOT = np.moveaxis(np.eye(C)[LABELS % C], -1, 1)


def test_the_losses_of_others_in_these_arguments():
    one, truth, labels = LOGITS[:, :1], ANSWERS[:, :1] % 2, LABELS % C
    focal = (1 - RIGHT) ** 2 * -np.log(RIGHT)
    torchvision = np.where(TRUTH, 0.25, 0.75) * focal
    of_label = (SOFTMAX * HOT).sum(1)
    keras = 0.25 * (1 - of_label) ** 2 * -np.log(of_label)
    sigmoids = 1 / (1 + np.exp(-LOGITS.astype(float)))
    of_each = np.where(HOT, sigmoids, 1 - sigmoids)
    smp = ((1 - of_each) ** 2 * -np.log(of_each)).mean((0, 2, 3)).sum()

    def dice(p, t, axes, numerator=0.0, denominator=0.0):
        both = p.sum(axes) + t.sum(axes)
        return (1 - (2 * (p * t).sum(axes) + numerator) / (both + denominator)).mean()

    for ours, theirs in (
        (nnx.FocalLoss(alpha=0.25, reduction="none")(one, truth).ravel(), torchvision),
        (nnx.FocalLoss()(one, truth), focal.mean()),
        (nnx.FocalLoss(weight=jnp.full(C, 0.25))(LOGITS, labels), keras.mean()),
        (C * nnx.FocalLoss()(LOGITS, HOT.astype(int)), smp),
        (nnx.DiceLoss(smooth=5e-6)(LOGITS, labels), dice(SOFTMAX, HOT, (2, 3), 1e-5, 1e-5)),
        (
            nnx.DiceLoss(smooth=5e-6, ignore_background=True)(LOGITS, labels),
            dice(SOFTMAX[:, 1:], HOT[:, 1:], (2, 3), 1e-5, 1e-5),
        ),
        (nnx.DiceLoss(smooth=0.0, batch=True)(LOGITS, labels), dice(SOFTMAX, HOT, (0, 2, 3))),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=2e-6)


@pytest.mark.parametrize("logits", [[2.0, 0.0, 0.5], [1.0, 0.9, 0.5]])
def test_mixed_derivatives_of_the_poly_loss(logits, x64):
    """By logits and labels, beside one class far above the others and without."""

    def plain(x, y):
        log_p = jax.nn.log_softmax(x)
        return jnp.sum(y * (2 * (1 - jnp.exp(log_p)) - log_p))

    x, y = jnp.array(logits), jnp.array([0.5, 0.2, 0.3])

    @functools.partial(jax.jit, static_argnums=0)
    def mixed(f, *args):
        orders = [(one, other) for one in ((0, 1), (1, 0)) for other in (jax.jacrev, jax.jacfwd)]
        return [inner(jax.grad(f, i), j)(*args) for (i, j), inner in orders]

    found, wanted = (mixed(f, x, y) for f in (jaxloss.poly_loss_cross_entropy, plain))
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)
