"""torch's answers: values, gradients and signatures as recorded, and live where it is installed."""

import functools
import importlib.util
import inspect
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_cases import DIFFERENT_GRADIENTS, FROM_LOGITS, calls, cotangent

import jaxloss.linen
import jaxloss.nnx
from jaxloss import functional as F

HERE = pathlib.Path(__file__).parent
RECORDED = np.load(HERE / "torch_reference.npz")
SIGNATURES = json.loads((HERE / "torch_signatures.json").read_text())
CALLS = {call.name: call for call in calls()}
FUNCTIONS = sorted({call.function for call in CALLS.values()})
ULP = 2.0**-23
NARROW = {"f": np.float32, "c": np.complex64, "i": np.int32}


def differs(call):
    """Why this call's gradient is not torch's; None where it is."""
    for part, reason in DIFFERENT_GRADIENTS.items():
        if part in call.name:
            return reason
    return None


def arrays(call, wide):
    """The arrays of a call, by place or name."""
    given = {str(place): a for place, a in enumerate(call.args)} | call.options
    return {
        name: jnp.asarray(a if wide else a.astype(NARROW[a.dtype.kind]))
        for name, a in given.items()
        if isinstance(a, np.ndarray)
    }


@functools.cache
def together(names):
    """Our values and gradients of several calls as one program, whatever numbers they are of."""

    def one(call, given):
        def f(*floats):
            own = given | dict(zip(map(str, call.differentiable), floats, strict=True))
            args = [own.get(str(place), a) for place, a in enumerate(call.args)]
            if call.function in FROM_LOGITS:
                args[0] = jax.nn.log_softmax(args[0])
            options = {name: own.get(name, a) for name, a in call.options.items()}
            return getattr(F, call.function)(*args, **options)

        value, pullback = jax.vjp(f, *(given[str(place)] for place in call.differentiable))
        return value, pullback(jnp.asarray(cotangent(value), value.dtype))

    return jax.jit(lambda given: [one(CALLS[n], own) for n, own in zip(names, given, strict=True)])


def answers(chosen, wide):
    """Our answers to calls, which share a program with others of the same names."""
    return together(tuple(call.name for call in chosen))([arrays(call, wide) for call in chosen])


def compare(call, ours, theirs, tolerance):
    (value, gradients), (torch_value, torch_gradients) = ours, theirs
    if call.function == "cosine_embedding_loss":
        tolerance = max(tolerance, 1e-11)  # torch adds 1e-12 to the squared norms.
    assert_close(call, value, torch_value, tolerance)
    for mine, reference in zip(gradients, torch_gradients, strict=True):
        if differs(call):
            assert not np.any(np.isnan(mine)), call.name
        else:
            # A derivative that torch gets as NaN or infinite is finite here.
            known = np.isfinite(reference)
            assert np.all(np.isfinite(mine)), call.name
            assert_close(call, np.where(known, mine, 0), np.where(known, reference, 0), tolerance)


def assert_close(call, mine, reference, tolerance):
    assert mine.shape == reference.shape, call.name
    # Losses are differences of numbers of the order of 1, to whose digits they are accurate.
    scale = np.abs(reference[np.isfinite(reference)]).max(initial=1)
    np.testing.assert_allclose(
        mine, reference, rtol=tolerance, atol=tolerance * scale, err_msg=call.name
    )


def recorded(call):
    gradients = [RECORDED[f"{call.name}/gradient{i}"] for i in range(len(call.differentiable))]
    return RECORDED[f"{call.name}/value"], gradients


@pytest.mark.parametrize("function", FUNCTIONS)
def test_float64_is_torch(function, x64):
    chosen = [call for call in CALLS.values() if call.function == function]
    for call, ours in zip(chosen, answers(chosen, wide=True), strict=True):
        compare(call, ours, recorded(call), 1e-12)
    if not importlib.util.find_spec("torch"):
        return
    from record_torch_reference import ask

    # The same program is asked of inputs that are not recorded, and so is torch itself.
    chosen = [call for call in calls(seed=1) if call.function == function]
    for call, ours in zip(chosen, answers(chosen, wide=True), strict=True):
        compare(call, ours, ask(call), 1e-12)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_float32_is_torch_in_float64(function):
    # Unreduced: sums of terms of both signs have no scale to be accurate to.
    chosen = [
        call
        for call in CALLS.values()
        if call.function == function and call.options.get("reduction") in (None, "none")
    ]
    for call, ours in zip(chosen, answers(chosen, wide=False), strict=True):
        compare(call, ours, recorded(call), 4 * ULP)


def test_different_gradients_differ_as_said(x64):
    def gradients(name):
        call = CALLS[name]
        ((_, ours),) = answers([call], wide=True)
        return [np.asarray(g) for g in ours], recorded(call)[1]

    mine, theirs = gradients("l1_loss-complex-sum")
    np.testing.assert_allclose(mine, np.conj(theirs), rtol=1e-12)
    (mine, _), (theirs, _) = gradients("binary_cross_entropy-certain-sum")
    np.testing.assert_allclose(mine, [-1e12, 1e12, 1, -1], rtol=1e-12)
    np.testing.assert_allclose(
        theirs, [-1e12, 1e12, 0, 0], rtol=1e-8
    )  # torch's bound is a float32.
    for function in ("nll_loss", "cross_entropy"):
        for case in ("all-ignored", "weight0"):
            (mine,), _ = gradients(f"{function}-{case}-mean")
            np.testing.assert_array_equal(mine, 0)


# Instead of torch's `options`; for sharded classes; and what holds parameters needs in NNX.
OURS = {
    "chunk_size", "axis_name", "features_axis_name",
    "rngs", "dtype", "param_dtype", "kernel_init", "bias_init",
}  # fmt: skip
LEGACY = {"size_average", "reduce", "reduction"}
DECLARED = [n for n in SIGNATURES if n[0].islower()]
CLASSES = [n for n in SIGNATURES if n[0].isupper() and "." not in n]


def value_of(default):
    """A recorded default, the repr of a plain value."""
    return eval(default, {"inf": float("inf")})


@pytest.mark.parametrize("name", DECLARED)
def test_function_signature_is_torch(name):
    ours = [
        p for p in inspect.signature(getattr(F, name)).parameters.values() if p.name not in OURS
    ]
    theirs = {a: (kind, default) for a, kind, default in SIGNATURES[name] if a != "options"}
    assert {p.name for p in ours} == set(theirs)
    for p in ours:
        _, default = theirs[p.name]
        assert p.default == (p.empty if default is None else value_of(default)), p
    # What stands before the first legacy argument may be positional, and nothing else.
    legacy = [n for n in ("size_average", "reduce", "reduction") if n in theirs]
    if name == "ctc_loss":  # Its reduction never was behind legacy arguments.
        legacy = []
    order = list(theirs)
    before = order[: min(map(order.index, legacy), default=len(order))]
    positional = [n for n in before if theirs[n][0] != "KEYWORD_ONLY"]
    assert [p.name for p in ours if p.kind is not p.KEYWORD_ONLY] == positional


@pytest.mark.parametrize("door", [jaxloss.nnx, jaxloss.linen], ids=["nnx", "linen"])
@pytest.mark.parametrize("name", CLASSES)
def test_class_signature_is_torch(name, door):
    cls = getattr(door, name)
    declared = list(inspect.signature(cls.__init__).parameters.values())[1:]
    ours = [p for p in declared if p.name not in {"parent", "name"} | OURS]
    theirs = [a for a in SIGNATURES[name] if a[0] not in ("device", "dtype", "options")]
    assert [p.name for p in ours] == [argument for argument, _, _ in theirs]
    for p, (_, kind, default) in zip(ours, theirs, strict=True):
        assert p.default == (p.empty if default is None else value_of(default))
        assert p.kind.name == kind
    call = list(inspect.signature(cls.__call__).parameters)[1:]
    assert call == [argument for argument, _, _ in SIGNATURES[f"{name}.forward"]]
