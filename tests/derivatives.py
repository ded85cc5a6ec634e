"""Values, slopes and curvatures of a primitive, in a batch and row by row, in every mode."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

FIRST = ("forward", "reverse")
SECOND = ("forward over reverse", "twice reverse", "in a scan")


def check(f, args, value, slopes, curvatures=None, *, rtol=None, atol=None, curved=None):
    """f has these values, slopes by each argument and curvatures by each two of them.

    Every argument and every answer has a row for each point. What is NaN in the table of slopes or
    curvatures is not compared, but never NaN. Nothing is promised of curvatures that are None.
    """
    dtype = args[0].dtype
    positions = range(len(args))
    rtol = 16 * float(jnp.finfo(dtype).eps) if rtol is None else rtol
    atol = float(jnp.finfo(dtype).tiny) if atol is None else atol

    def scanned(*args):
        # Where some versions of JAX lose custom rules and differentiate the body.
        start = jnp.zeros((), dtype)
        return lax.scan(lambda sum, _: (sum + f(*args), None), start, length=1)[0]

    def by_row(*args):
        # One argument is differentiated at a time, since by the others a slope may be infinite.
        reverse = [jax.jacrev(f, i) for i in positions]
        forward = [jax.jacfwd(f, i) for i in positions]
        found = dict(zip(FIRST, ([d(*args) for d in modes] for modes in (forward, reverse)), strict=True))
        if curvatures is not None:
            inside = [jax.jacrev(scanned, i) for i in positions]
            ways = (jax.jacfwd, reverse), (jax.jacrev, reverse), (jax.jacfwd, inside)
            for mode, (d, slopes) in zip(SECOND, ways, strict=True):
                found[mode] = [[d(slope, j)(*args) for j in positions] for slope in slopes]
        return f(*args), found

    def in_batch(*args):
        losses, pull = jax.vjp(f, *args)
        return losses, pull(jnp.ones_like(losses))

    (alone, found), (together, gradients) = jax.jit(
        lambda *args: (jax.vmap(by_row)(*args), in_batch(*args))
    )(*args)

    def same(got, wanted, what, atol=atol):
        got = np.asarray(got)
        assert got.dtype == dtype
        wanted = np.asarray(wanted, np.float64)
        if what != "value":
            assert not np.any(np.isnan(got)), what
            got = np.where(np.isnan(wanted), np.nan, got)
        np.testing.assert_allclose(got, wanted, rtol=rtol, atol=atol, err_msg=what)

    for got in (alone, together):
        same(got, value, "value")
    for i in positions:
        for mode in FIRST:
            same(found[mode][i], slopes[i], f"{mode}, argument {i}")
        same(gradients[i], slopes[i], f"in a batch, argument {i}")
        for mode in SECOND if curvatures is not None else ():
            for j in positions:
                what = f"{mode}, arguments {i} and {j}"
                same(found[mode][i][j], curvatures[i][j], what, curved or atol)
