"""What callers hand over: nested lists, numbers of any library, wide integers, wrong calls."""

# pyright: reportArgumentType=false, reportCallIssue=false
# Wrong calls are among the subjects.

import decimal
import fractions
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DOORS, LOSSES, UNREDUCED, C, N, arrays
from jax.experimental import checkify
from test_modules import MODULES

import jaxloss
import jaxloss.linen
import jaxloss.nnx
from jaxloss import functional as F
from jaxloss._base import checks


def prepared(loss, door, seed=1):
    """The function of a row's door, its arguments in the order of that door, and its options."""
    args = loss.inputs(seed=seed)
    if door == "core":
        return getattr(jaxloss, loss.core), args, dict(loss.options)
    options = dict(loss.torch_options)
    if loss.torch not in UNREDUCED:
        options["reduction"] = "none"
    return getattr(F, loss.torch), loss.as_torch(*args), options


def as_lists(value):
    return np.asarray(value).tolist() if isinstance(value, jax.Array | np.ndarray) else value


def as_tuples(value):
    listed = as_lists(value)
    return tuple(map(as_tuples, listed)) if isinstance(listed, list) else listed


# A distance of one's own is given what the caller gave, whatever that is.
LISTED = [(loss, door) for loss, door in DOORS if "distance_function" not in loss.options]


@pytest.mark.parametrize("listed", [as_lists, as_tuples])
@pytest.mark.parametrize(("loss", "door"), LISTED, ids=[f"{loss}-{door}" for loss, door in LISTED])
def test_nested_lists_are_arrays(loss, door, listed):
    function, args, options = prepared(loss, door)
    wanted = function(*args, **arrays(options))
    got = function(*map(listed, args), **{name: listed(x) for name, x in options.items()})
    np.testing.assert_array_equal(got, wanted)
    if door != "core":
        return
    where = np.asarray(loss.where(np.arange(N) % 2 == 0))
    wanted = function(*args, **arrays(options), where=where)
    np.testing.assert_array_equal(function(*args, **arrays(options), where=listed(where)), wanted)


def test_lists_of_traced_numbers_are_arrays():
    def loss(x):
        return F.cross_entropy([[x, 0.5], [0.1, 2 * x]], [0, 1])

    x = jnp.float32(0.25)
    wanted = F.cross_entropy(jnp.array([[0.25, 0.5], [0.1, 0.5]]), jnp.array([0, 1]))
    for value in (loss(x), jax.jit(loss)(x), jax.value_and_grad(loss)(x)[0]):
        np.testing.assert_allclose(value, wanted, rtol=1e-6)


EMPTY = {
    "cross_entropy": lambda: F.cross_entropy(jnp.zeros((0, 3)), [], reduction="none"),
    "nll_loss": lambda: F.nll_loss(jnp.zeros((0, 3)), [], reduction="none"),
    "multi_margin_loss": lambda: F.multi_margin_loss(jnp.zeros((0, 3)), [], reduction="none"),
    "linear_cross_entropy": lambda: F.linear_cross_entropy(
        jnp.zeros((0, 2)), jnp.ones((3, 2)), [], reduction="none"
    ),
    "core": lambda: jaxloss.softmax_cross_entropy_with_integer_labels(jnp.zeros((0, 3)), []),
    "linear": lambda: jaxloss.linear_softmax_cross_entropy(jnp.zeros((0, 2)), jnp.ones((3, 2)), []),
}


@pytest.mark.parametrize("call", EMPTY.values(), ids=EMPTY)
def test_an_empty_list_is_no_labels(call):
    assert call().shape == (0,)


def test_an_empty_list_is_no_targets_of_ctc():
    log_probs = jax.nn.log_softmax(jnp.arange(15.0).reshape(5, 3))
    blank = -jnp.sum(log_probs[:, 0])
    np.testing.assert_allclose(F.ctc_loss(log_probs, [], 5, 0), blank, rtol=1e-6)
    np.testing.assert_allclose(F.ctc_loss(log_probs[:, None], [], [5], [0]), blank, rtol=1e-6)


def _adaptive(inputs, labels):
    ones = functools.partial(jnp.ones, dtype=jnp.float32)
    head, tail = ones((3, 3)), [(ones((2, 3)), ones((C - 2, 2)))]
    return jaxloss.adaptive_softmax_cross_entropy(inputs, head, tail, labels)


def labelled():
    """Every function of class indices as a function of these, and such indices."""
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(N, 3)), jnp.float32)
    found = {"adaptive": (functools.partial(_adaptive, rows), np.arange(N) % C)}
    module = jaxloss.linen.AdaptiveLogSoftmaxWithLoss(3, C, [2], div_value=1.0)
    parameters = module.init(jax.random.key(0), rows, jnp.zeros(N, jnp.int32))
    found["adaptive module"] = (
        lambda y: module.apply(parameters, rows, y)[0],
        np.arange(N) % C,
    )
    for loss, door in DOORS:
        place = {"linear": 2, "linear_smoothed": 2, "multilabel_margin": 1}.get(loss.name)
        if loss.name == "ctc":
            place = 2 if door == "core" else 1
        elif loss.labels:
            place = 1
        if place is not None:
            function, args, options = prepared(loss, door)

            def call(labels, function=function, args=args, options=options, place=place):
                return function(*args[:place], labels, *args[place + 1 :], **arrays(options))

            found[f"{loss}-{door}"] = call, np.asarray(args[place])
    return found


FUNCTIONS_OF_LABELS = list(labelled())
# What is 0 or another class in 32 bits, and the edges.
WIDE = [2**32, 2**32 + 1, 2**33 - 1, 2**31, 2**32 - 1, 2**63 - 1, -(2**32), -(2**63) + 1]


def check_wide_label(name, bad, given):
    call, labels = labelled()[name]
    first = (2,) + (0,) * (labels.ndim - 1)
    wrong = labels.astype(np.int64)
    wrong[first] = bad
    value, fine = np.asarray(call(given(wrong))), np.asarray(call(labels))
    others = np.arange(N) != 2
    np.testing.assert_array_equal(value[others], fine[others])
    if bad < 0 and name.startswith("multilabel"):  # The end of the labels.
        assert value[2] == 0
    else:
        assert np.isnan(value[2])


@pytest.mark.parametrize("name", FUNCTIONS_OF_LABELS)
def test_a_label_too_wide_for_jax_is_a_bad_label(name):
    for bad in WIDE:
        check_wide_label(name, bad, lambda labels: labels)
        check_wide_label(name, bad, np.ndarray.tolist)


@pytest.mark.parametrize("name", FUNCTIONS_OF_LABELS)
def test_a_wide_label_is_a_bad_label_with_x64(name, x64):
    for bad in WIDE:
        check_wide_label(name, bad, jnp.asarray)
        check_wide_label(name, bad, np.ndarray.tolist)


@pytest.mark.parametrize("name", FUNCTIONS_OF_LABELS)
def test_a_wide_label_is_an_error_under_checkify(name):
    call, labels = labelled()[name]
    wrong = labels.astype(np.int64)
    wrong[(2,) + (0,) * (labels.ndim - 1)] = 2**32
    error, _ = checkify.checkify(lambda: call(wrong))()
    with pytest.raises(checkify.JaxRuntimeError, match="must be"):
        error.throw()


# The integers of a call, the labels in the dtype named, or on the host as numpy's or Python's.
MINUS_100 = 2**32 - 100
HUGE = 2**64 - 100
IGNORED = [
    ([0, 1, 2], "int32", 2**32),
    ([0, 1, 2], "int32", np.int64(2**32)),
    ([0, 1, -100], "int32", MINUS_100),
    ([0, 1, MINUS_100], "uint32", -100),
    ([0, 1, MINUS_100], "uint32", MINUS_100),
    ([0, 1, 156], "uint8", -100),
    ([0, 1, 255], "uint8", 255),
    ([0, 1, 255], "uint8", -1),
    ([0, 1, -1], "int8", 255),
    ([0, 1, -1], "int8", np.uint8(255)),
    ([0, 1, -1], "int32", jnp.uint32(2**32 - 1)),
    ([0, 1, 2**32], "numpy", 2**32),
    ([0, -100, 2**32], "numpy", -100),
    ([0, 1, 2**32], "numpy", 2**32 + 1),
    ([0, -100, 2**32], "numpy", 0),
    ([0, MINUS_100, -100], "numpy", MINUS_100),
    ([0, MINUS_100, -100], "numpy", -100),
    ([0, 2**63 - 1, -(2**63)], "numpy", -(2**63)),
    ([0, 2**32, 2**33], "list", 2**33),
    ([2**32, 2**31 - 1, 1], "list", 2**31 - 1),
    ([0, 1, 2**64 - 1], "list", 2**64 - 1),
    ([0, -1, 2**64 - 1], "list", -1),
    ([0, 1, 2], "int32", 2**80),
]
DOORS_THAT_IGNORE = {
    "cross_entropy": F.cross_entropy,
    "nll_loss": F.nll_loss,
    "linear_cross_entropy": lambda x, y, **options: F.linear_cross_entropy(
        x, jnp.eye(3), y, **options
    ),
    "module": lambda x, y, ignore_index, reduction: jaxloss.nnx.CrossEntropyLoss(
        ignore_index=ignore_index, reduction=reduction
    )(x, y),
}


def check_ignored(function, labels, kind, ignore_index):
    x = jnp.arange(9.0).reshape(3, 3) / 7
    if kind == "numpy":
        given = np.array(labels)
    elif kind == "list":
        given = labels
    else:
        given = jnp.array(labels, kind)
    got = function(x, given, ignore_index=ignore_index, reduction="none")
    known = jnp.array([y if 0 <= y < 3 else 0 for y in labels])
    plain = function(x, known, ignore_index=-100, reduction="none")
    for y, value, whole in zip(labels, got, plain, strict=True):
        wanted = 0 if y == int(ignore_index) else whole if 0 <= y < 3 else np.nan
        np.testing.assert_array_equal(value, wanted)


@pytest.mark.parametrize("function", DOORS_THAT_IGNORE.values(), ids=DOORS_THAT_IGNORE)
def test_ignore_index_is_compared_by_value(function):
    for labels, kind, ignore_index in IGNORED:
        check_ignored(function, labels, kind, ignore_index)


@pytest.mark.parametrize("function", DOORS_THAT_IGNORE.values(), ids=DOORS_THAT_IGNORE)
def test_ignore_index_is_compared_by_value_with_x64(function, x64):
    for labels, kind, ignore_index in [
        *IGNORED,
        ([0, 1, HUGE], "uint64", -100),
        ([0, 1, HUGE], "uint64", HUGE),
        ([0, 1, -100], "int64", HUGE),
        ([0, 1, 2**32], "int64", 2**32),
        ([0, 2**32, 1], "int64", 0),
    ]:
        check_ignored(function, labels, kind, ignore_index)


def test_ignore_index_may_be_traced():
    x, y = jnp.zeros((3, 3)), jnp.array([0, 1, 2**32 - 1], jnp.uint32)
    losses = jax.jit(lambda i: F.cross_entropy(x, y, ignore_index=i, reduction="none"))
    np.testing.assert_array_equal(losses(1) == 0, [False, True, False])
    np.testing.assert_array_equal(losses(-1) == 0, [False, False, False])
    np.testing.assert_array_equal(losses(jnp.uint32(2**32 - 1)) == 0, [False, False, True])


@pytest.mark.parametrize("door", ["functional", "nnx", "linen"])
def test_class_probabilities_take_no_ignore_index(door):
    x, y = jnp.zeros((2, 3)), jnp.full((2, 3), 1 / 3)

    def loss(ignore_index):
        if door == "functional":
            return F.cross_entropy(x, y, ignore_index=ignore_index)
        return getattr(jaxloss, door).CrossEntropyLoss(ignore_index=ignore_index)(x, y)

    wanted = F.cross_entropy(x, y)
    for default in (-100, np.int64(-100), jnp.int32(-100), np.array(-100)):
        np.testing.assert_array_equal(loss(default), wanted)
        np.testing.assert_array_equal(jax.jit(lambda: loss(-100))(), wanted)
    for other in (0, -1, 255, np.int64(1), jnp.int32(0), 2**32):
        with pytest.raises(ValueError, match="cross_entropy: `ignore_index` must be left at -100"):
            loss(other)


def numbers():
    """Every hyper-parameter of every function, with a call of the function that takes it."""
    found = {}
    for loss, door in DOORS:
        function, args, options = prepared(loss, door)
        if "distance_function" in options:
            continue  # Its numbers are those of the loss with the default distance.
        for name, parameter in inspect.signature(function).parameters.items():
            of_numbers = parameter.annotation in ("ArrayLike", "float", "int")
            if not of_numbers or not isinstance(parameter.default, int | float):
                continue
            if name in ("ignore_index", "blank", "blank_id", "dim", "axis"):
                continue  # Integers of their own meaning.

            def call(value, function=function, args=args, options=options, name=name):
                return function(*args, **{**arrays(options), name: value})

            key = f"{door}.{function.__name__}-{name}"
            found.setdefault(key, call)
    distances = prepared(next(a for a in LOSSES if a.name == "triplet"), "core")[1]
    for door, function in (
        ("core", jaxloss.triplet_margin_with_distance_loss),
        ("functional", F.triplet_margin_with_distance_loss),
    ):
        found[f"{door}.{function.__name__}-margin"] = lambda value, function=function: function(
            *distances, margin=value
        )
    classes = {m[0]: m for m in MODULES}
    rows = {loss.name: loss for loss in LOSSES}
    for name, (_, options, row, _) in classes.items():
        inputs = rows[row].as_torch(*rows[row].inputs(seed=1))
        for option in options:
            if option in ("margin", "p", "eps", "beta", "delta", "label_smoothing"):
                for door in (jaxloss.nnx, jaxloss.linen):

                    def build(value, door=door, name=name, inputs=inputs, option=option):
                        return getattr(door, name)(**{option: value})(*inputs)

                    found[f"{door.__name__}.{name}-{option}"] = build
    return found


NUMBERS = numbers()
FLOATS = [0.5, 0.0, 1.0, 1.5, -1.0, float("nan")]
INTEGERS = [0, 1, 2, -1]
OF_FLOATS = [np.float32, np.float64, np.array]
OF_INTEGERS = [np.int64, np.int32, np.array]
OF_BOTH = [fractions.Fraction, decimal.Decimal]


def outcome(call, value):
    try:
        return np.asarray(call(value))
    except (TypeError, ValueError) as error:
        return type(error), str(error).replace(".0", "")  # 1 and 1.0 are one number.


def same(got, wanted):
    np.testing.assert_equal(type(got), type(wanted))
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_that_number_whatever_library_it_is_of(name):
    call, is_power = NUMBERS[name], name.endswith("-p")
    for values, kinds in ((FLOATS, OF_FLOATS), (INTEGERS, OF_INTEGERS)):
        for value in values:
            wanted = outcome(call, value)
            for kind in kinds:
                same(outcome(call, kind(value)), wanted)
            if value == value:
                for kind in OF_BOTH:
                    same(outcome(call, kind(value)), wanted)
            if not is_power:  # One of JAX is no Python value, see `test_errors`.
                same(outcome(call, jnp.asarray(value)), wanted)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_complex_number_is_a_type_error(name):
    for value in (1j, 1 + 0j, np.complex64(1), np.complex128(1), np.array(1 + 0j)):
        with pytest.raises(TypeError, match=r": `\w+` must be real, got"):
            NUMBERS[name](value)


@pytest.fixture
def untraced(monkeypatch):
    """From its call on, only what is compiled already can run."""
    return lambda: monkeypatch.setattr(checks, "arrays", None)  # Which every trace calls.


ZEROS = [0, 0.0, np.float32(0), np.int64(0), np.array(0), jnp.float32(0), decimal.Decimal(0)]


@pytest.mark.parametrize("option", ["label_smoothing", "z_loss"])
def test_a_term_is_absent_at_every_zero(option, untraced):
    logits, labels = jnp.array([[-jnp.inf, 0.0, 1.0]]), jnp.array([1])
    kernel, each = jnp.array([[-jnp.inf], [0.0], [1.0]]), jnp.array([[0.0, 1.0, 0.0]])
    calls = [
        lambda **o: jaxloss.softmax_cross_entropy_with_integer_labels(logits, labels, **o),
        lambda **o: jaxloss.softmax_cross_entropy(logits, each, **o),
        lambda **o: jaxloss.linear_softmax_cross_entropy(jnp.ones((1, 1)), kernel, labels, **o),
    ]
    if option == "label_smoothing":
        calls.append(lambda **o: F.cross_entropy(logits, labels, **o))
        calls.append(lambda **o: F.linear_cross_entropy(jnp.ones((1, 1)), kernel, labels, **o))
    without = [call() for call in calls]
    untraced()
    for call, wanted in zip(calls, without, strict=True):
        for zero in ZEROS:
            np.testing.assert_array_equal(call(**{option: zero}), wanted)


def test_static_numbers_of_numpy_are_no_other_program(untraced):
    x = jnp.ones((2, 3))
    wanted = [F.pairwise_distance(x, 2 * x, p=p, keepdim=True) for p in (7, 7.0)]
    untraced()
    for p in (np.int64(7), np.array(7), np.float32(7), np.array(7.0), fractions.Fraction(7)):
        got = F.pairwise_distance(x, 2 * x, p=p, keepdim=np.bool_(True))
        np.testing.assert_array_equal(got, wanted[0])


FUNCTIONS = {
    (f"{door}.{function.__name__}"): function
    for door, function in [
        *(("core", getattr(jaxloss, loss.core)) for loss in LOSSES),
        *(("functional", getattr(F, loss.torch)) for loss in LOSSES if loss.torch),
        ("core", jaxloss.adaptive_softmax_cross_entropy),
        ("core", jaxloss.adaptive_log_softmax),
        ("core", jaxloss.ctc_alignment),
        ("core", jaxloss.reduce),
    ]
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("extra", ["sum", 1.0, None], ids=str)
def test_a_wrong_call_is_refused_in_the_words_of_python(function, extra):
    name, x = function.__name__, jnp.ones((2, 3))
    parameters = inspect.signature(function).parameters.values()
    places = sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    needed = [x] * sum(p.default is p.empty for p in parameters)
    with pytest.raises(TypeError, match=rf"^{name}\(\) takes .* but {places + 1} were given$"):
        function(*[x] * places, extra)
    with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected .* 'reducton'"):
        function(*needed, reducton=extra)
    first = next(iter(parameters)).name
    with pytest.raises(TypeError, match=rf"^{name}\(\) got multiple values .* '{first}'$"):
        function(*needed, **{first: extra})
    with pytest.raises(TypeError, match=rf"^{name}\(\) missing .* required positional argument"):
        function()


UNREDUCED_FUNCTIONS = {
    name: function
    for name, function in FUNCTIONS.items()
    if "reduction" not in inspect.signature(function).parameters
    # Which is a plain function of Python, as it calls a function of the user's.
    and function is not jaxloss.triplet_margin_with_distance_loss
}


@pytest.mark.parametrize("function", UNREDUCED_FUNCTIONS.values(), ids=UNREDUCED_FUNCTIONS)
def test_a_loss_without_reduction_says_how_to_reduce(function):
    with pytest.raises(TypeError, match=r"'reduction'; .* `jaxloss\.reduce` reduces$"):
        function(jnp.ones((2, 3)), jnp.ones((2, 3)), reduction="mean")
