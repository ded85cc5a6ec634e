"""The gallery's panels one by one, each for the functions that its curves call."""

import collections
import functools
from collections.abc import Callable
from unittest import mock

import gallery
import gallery_panels
import jax
import matplotlib.pyplot as plt
from pages import DOCS, DOORS, public

import jaxloss

FOLDER = DOCS / "pictures"
POINTS = 401
CURVES = "Losses (solid) and derivatives (dashed); a circle is the derivative taken at a kink."
SURFACE = "Arrows point down the gradient; where there is an orange line the loss becomes 0."
SEQUENCES = "How the loss and its gradient see a noisy recording."


def draw() -> dict[str, list[tuple[str, str, str]]]:
    """Of each function: its pictures' paths from the documentation, titles and captions."""
    called: set[str] = set()

    def recorded(name: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*args, **kwargs):
            called.add(name)
            return function(*args, **kwargs)

        return call

    found = collections.defaultdict(list)
    for name in ("ctc_loss", "ctc_alignment", "rnnt_loss"):
        path = f"/../examples/gallery/{name.partition('_')[0]}.png"
        found[name].append((path, name, SEQUENCES))
    functions = {n: f for n, f in public(DOORS["jaxloss"][0]).items() if not isinstance(f, type)}
    with mock.patch.multiple(jaxloss, **{n: recorded(n, f) for n, f in functions.items()}):
        for table in ("elementwise", "margins", "cross_entropy", "beyond_torch"):
            for number, panel in enumerate(getattr(gallery_panels, table)()):
                called.clear()
                is_curve = isinstance(panel, gallery_panels.Panel)
                for loss in [c.loss for c in panel.curves] if is_curve else [panel.loss]:
                    jax.eval_shape(loss, *[1.0] * (1 if is_curve else 2))
                path = FOLDER / f"{table}-{number}.png"
                draw_alone(panel, path)
                for name in called:
                    caption = CURVES if is_curve else SURFACE
                    found[name].append((f"/pictures/{path.name}", panel.title, caption))
    return found


def draw_alone(panel, path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, _ = gallery.draw_panels([panel], [], POINTS)
    gallery.save(figure, path)
    plt.close(figure)
