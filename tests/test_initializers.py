"""Linear layers of the losses: made, typed and sharded as Flax's own layers are."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss.linen
import jaxloss.nnx

INPUTS = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
LABELS = np.array([0, 3, 15, 7, 8, 1])
DOORS = [jaxloss.nnx, jaxloss.linen]
# The class, its options, and the shapes of its parameters.
MODULES = {
    "LinearCrossEntropyLoss": (
        {"in_features": 8, "num_classes": 16, "bias": True},
        {"linear.weight": (16, 8), "linear.bias": (16,)},
    ),
    "AdaptiveLogSoftmaxWithLoss": (
        {"in_features": 8, "n_classes": 16, "cutoffs": [6, 8], "div_value": 2.0, "head_bias": True},
        {
            "head.weight": (8, 8),
            "head.bias": (8,),
            "tail.0.0.weight": (4, 8),
            "tail.0.1.weight": (2, 4),
            "tail.1.0.weight": (2, 8),
            "tail.1.1.weight": (8, 2),
        },
    ),
}
each = pytest.mark.parametrize("name", MODULES)
BOTH = pytest.mark.parametrize("door", DOORS, ids=["nnx", "linen"])


def made(door, name, **options) -> tuple[Any, dict[str, Any], Any]:
    """A module, its parameters under torch's names, and a call of it."""
    cls = functools.partial(getattr(door, name), **MODULES[name][0], **options)
    if door is jaxloss.nnx:
        module = cls(rngs=nnx.Rngs(7))
        state = nnx.to_flat_state(nnx.state(module, nnx.Param))
        return module, {".".join(map(str, k)): v[...] for k, v in state}, module
    module = cls()
    variables = jax.jit(module.init)(jax.random.key(7), INPUTS, LABELS)
    flat = {
        f"{layer.replace('_', '.')}.{own}": value
        for layer, parameters in nn.unbox(variables)["params"].items()
        for own, value in parameters.items()
    }
    return module, flat, functools.partial(module.apply, variables)


def loss(result):
    return result.loss if hasattr(result, "loss") else result


def record(calls, value):
    def init(key, shape, dtype):
        calls.append((tuple(shape), jnp.dtype(dtype)))
        return jnp.full(shape, value, dtype)

    return init


@BOTH
@each
def test_initializers_get_torch_layout(door, name):
    kernels, biases = [], []
    shapes = MODULES[name][1]
    options = {"kernel_init": record(kernels, 0.25), "bias_init": record(biases, 2.0)}
    for dtype in (jnp.float32, "bfloat16"):
        _, parameters, call = made(door, name, **options, param_dtype=dtype)
        assert {k: v.shape for k, v in parameters.items()} == shapes
        for key, value in parameters.items():
            assert value.dtype == dtype
            np.testing.assert_array_equal(value, 2.0 if key.endswith("bias") else 0.25)
        # Linen makes them once more, abstractly, to see that the shapes fit.
        assert {(s, jnp.dtype(dtype)) for k, s in shapes.items() if "weight" in k} == {*kernels}
        assert {(s, jnp.dtype(dtype)) for k, s in shapes.items() if "bias" in k} == {*biases}
        assert loss(call(INPUTS, LABELS)).dtype == jnp.float32
        kernels.clear()
        biases.clear()


@BOTH
@each
def test_the_default_is_torch_uniform_and_may_be_named(door, name):
    _, parameters, _ = made(door, name)
    for key, value in parameters.items():
        features = MODULES[name][1][key.replace("bias", "weight")][-1]
        assert 0.5 / features**0.5 < np.max(np.abs(value)) <= 1 / features**0.5
    _, again, _ = made(door, name, kernel_init=getattr(door, name).kernel_init)
    jax.tree.map(np.testing.assert_array_equal, parameters, again)
    scaled = jax.nn.initializers.variance_scaling(
        1 / 3, "fan_in", "uniform", in_axis=-1, out_axis=-2
    )
    _, others, _ = made(door, name, kernel_init=scaled)
    for key in parameters:
        bound = MODULES[name][1][key.replace("bias", "weight")][-1] ** -0.5
        assert np.max(np.abs(others[key])) <= bound


# The sums of the parameters of key 7 by default, as they were before one could choose.
RECORDED = {
    ("LinearCrossEntropyLoss", "nnx"): [0.44416401, 3.50390148],
    ("LinearCrossEntropyLoss", "linen"): [1.27506375, 3.44066858],
    ("AdaptiveLogSoftmaxWithLoss", "nnx"): [
        *(0.45146561, 1.12488472, -2.33631659, 0.10548282, -1.07301044, -2.39099383)
    ],
    ("AdaptiveLogSoftmaxWithLoss", "linen"): [
        *(-0.50379908, 0.44489062, -1.10123920, -1.16361094, 0.71711373, -1.85970855)
    ],
}


@BOTH
@each
def test_the_numbers_of_a_key_stay(door, name):
    _, parameters, _ = made(door, name)
    found = [np.sum(parameters[key]) for key in sorted(parameters)]
    wanted = RECORDED[name, door.__name__.removeprefix("jaxloss.")]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def as_function(door, module, call):
    """A loss of (parameters, inputs), and the parameters."""
    if door is jaxloss.nnx:
        graph, state = nnx.split(module)
        return lambda state, x: loss(nnx.merge(graph, state)(x, LABELS)), state
    return lambda variables, x: loss(module.apply(variables, x, LABELS)), call.args[0]


@BOTH
@each
@pytest.mark.parametrize("dtype", [jnp.bfloat16, "float16", jnp.float32])
def test_dtype_is_that_of_the_computation(door, name, dtype):
    """Inputs and parameters are rounded to it, and the gradients come back in their own."""

    def rounded(x):
        return x.astype(dtype).astype(jnp.float32)

    of, parameters = as_function(door, *made(door, name, dtype=dtype)[::2])
    plain, same = as_function(door, *made(door, name)[::2])
    assert {x.dtype for x in jax.tree.leaves(parameters)} == {jnp.dtype(jnp.float32)}
    jax.tree.map(np.testing.assert_array_equal, *map(jax.tree.leaves, (parameters, same)))
    x = jnp.asarray(INPUTS)
    value, gradient = jax.value_and_grad(of, (0, 1))(parameters, x)
    wanted = jax.value_and_grad(plain, (0, 1))(*jax.tree.map(rounded, (same, x)))
    np.testing.assert_allclose(value, wanted[0], rtol=1e-6)
    assert (value == plain(same, x)) == (dtype == jnp.float32)
    for mine, theirs in zip(*map(jax.tree.leaves, (gradient, wanted[1])), strict=True):
        assert mine.dtype == jnp.float32
        np.testing.assert_allclose(mine, theirs, rtol=2e-2, atol=1e-3)
    # Whatever comes in: other floats, and integers, as in Flax's layers.
    for other in (jnp.bfloat16, jnp.int32):
        given = x.astype(other)
        np.testing.assert_array_equal(of(parameters, given), of(parameters, given.astype(dtype)))
    with pytest.raises(TypeError, match=r"must be .*floating-point.*complex64"):
        of(parameters, x.astype(jnp.complex64))


@BOTH
def test_dtype_reaches_the_other_methods(door):
    name = "AdaptiveLogSoftmaxWithLoss"
    module, _, call = made(door, name, dtype=jnp.bfloat16)
    if door is jaxloss.nnx:
        found, best = module.log_prob(INPUTS), module.predict(INPUTS)
    else:
        found, best = (call(INPUTS, method=method) for method in ("log_prob", "predict"))
    own = found[np.arange(6), LABELS]
    np.testing.assert_allclose(own, call(INPUTS, LABELS).output, rtol=1e-6)
    np.testing.assert_array_equal(best, found.argmax(-1))
    _, _, plain = made(door, name)
    assert np.any(np.abs(own - plain(INPUTS, LABELS).output) > 1e-5)


@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
@each
def test_nnx_parameters_are_sharded_as_annotated(name, kind):
    cls, options = getattr(jaxloss.nnx, name), MODULES[name][0]
    zeros = jax.nn.initializers.zeros

    def build():
        return cls(
            **options,
            kernel_init=nnx.with_partitioning(cls.kernel_init, ("vocab", None)),
            bias_init=nnx.with_partitioning(zeros, ("vocab",)),
            rngs=nnx.Rngs(7),
        )

    def value_and_gradient(module):
        return nnx.value_and_grad(lambda m: loss(m(INPUTS, LABELS)))(module)

    wanted = value_and_gradient(cls(**options, bias_init=zeros, rngs=nnx.Rngs(7)))
    mesh = jax.make_mesh((2,), ("vocab",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        module = nnx.jit(build)()
        # Ready before the next program starts: two with collectives at a time can block each other
        # where there are fewer threads than devices.
        state = jax.block_until_ready(nnx.state(module, nnx.Param))
        for path, spec in nnx.to_flat_state(nnx.get_partition_spec(state)):
            annotated = P("vocab") if path[-1] == "bias" else P("vocab", None)
            assert spec.get_value() == annotated
        for path, parameter in nnx.to_flat_state(state):
            array, spec = parameter[...], P("vocab", *[None] * (parameter.ndim - 1))
            assert array.sharding.is_equivalent_to(NamedSharding(mesh, spec), array.ndim), path
        found = jax.block_until_ready(nnx.jit(value_and_gradient)(module))
        abstract = nnx.state(nnx.eval_shape(build), nnx.Param)
        assert jax.tree.leaves(nnx.get_partition_spec(abstract)) == jax.tree.leaves(
            nnx.get_partition_spec(state)
        )
    for mine, theirs in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


@each
def test_linen_parameters_are_sharded_as_annotated(name):
    cls, options = getattr(jaxloss.linen, name), MODULES[name][0]
    zeros = jax.nn.initializers.zeros
    module = cls(
        **options,
        kernel_init=nn.with_partitioning(cls.kernel_init, ("vocab", None)),
        bias_init=nn.with_partitioning(zeros, ("vocab",)),
    )
    plain = cls(**options, bias_init=zeros)

    def value_and_gradient(module, variables):
        return jax.value_and_grad(lambda v: loss(module.apply(v, INPUTS, LABELS)))(variables)

    key = jax.random.key(7)
    wanted = value_and_gradient(plain, plain.init(key, INPUTS, LABELS))
    mesh = jax.make_mesh((2,), ("vocab",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        specs: Any = nn.get_partition_spec(jax.eval_shape(module.init, key, INPUTS, LABELS))
        for layer in specs["params"].values():
            assert layer["weight"] == P("vocab", None)
            assert layer.get("bias", P("vocab")) == P("vocab")
        shardings = jax.tree.map(
            lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P)
        )
        init = jax.jit(module.init, out_shardings=shardings)
        variables = jax.block_until_ready(init(key, INPUTS, LABELS))  # As above.
        for array in jax.tree.leaves(variables):
            spec = P("vocab", *[None] * (array.ndim - 1))
            assert array.sharding.is_equivalent_to(NamedSharding(mesh, spec), array.ndim)
        step = jax.jit(functools.partial(value_and_gradient, module))
        found = jax.block_until_ready(step(variables))
    for mine, theirs in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


@BOTH
@each
def test_what_the_constructors_refuse(door, name):
    for option, value, words in (
        ("dtype", jnp.int32, "be a floating-point dtype, got"),
        ("dtype", "float31", "be a floating-point dtype, got 'float31'"),
        ("param_dtype", None, "be a floating-point dtype, got None"),
        (
            "kernel_init",
            None,
            "be an initializer, which takes a key, a shape and a dtype, got None",
        ),
        ("bias_init", 0.0, "be an initializer, which takes a key, a shape and a dtype, got 0.0"),
    ):
        with pytest.raises(TypeError, match=f"{name}: `{option}` must {words}"):
            made(door, name, **{option: value})
    with pytest.raises(TypeError, match="positional"):
        getattr(door, name)(8, 16, [6, 8], 2.0, True, None, jnp.float32, None, None, None)


def test_options_of_linen_modules_are_fields():
    """So that modules with the same ones are equal, and what is compiled for one serves both."""
    for name, (options, _) in MODULES.items():
        cls = getattr(jaxloss.linen, name)
        module, twin = (cls(**options, dtype=jnp.bfloat16, param_dtype="float16") for _ in "ab")
        assert module == twin == module.clone()
        assert hash(module) == hash(twin)
        assert module != cls(**options)
