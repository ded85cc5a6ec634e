"""What the page of a public name has beside its docstring: pictures, and the other doors."""

import functools
import inspect
import re
from collections.abc import Iterator

import pictures
from flax import linen
from pages import DOORS, public
from sphinx.errors import ExtensionError
from sphinx.util.inspect import stringify_signature

from jaxloss import modules

# The shape of each of these is that of another one.
ALIKE = {
    "adaptive_softmax_cross_entropy": "softmax_cross_entropy_with_integer_labels",
    "convex_kl_divergence": "generalized_kl_divergence",
    "cosine_distance": "cosine_similarity",
    "ctc_loss_with_forward_probs": "ctc_loss",
    "dice_loss": "binary_dice_loss",
    "info_nce_loss": "ntxent_per_example",
    "kl_divergence_with_log_targets": "kl_divergence",
    "linear_softmax_cross_entropy": "softmax_cross_entropy_with_integer_labels",
    "multiclass_generalized_dice_loss": "binary_dice_loss",
    "multilabel_soft_margin_loss": "sigmoid_binary_cross_entropy",
    "ntxent": "ntxent_per_example",
    "rnnt_loss_of_sum": "rnnt_loss",
    "safe_softmax_cross_entropy": "softmax_cross_entropy",
    "sigmoid_contrastive_loss": "sigmoid_binary_cross_entropy",
    "supervised_contrastive_loss": "ntxent_per_example",
    "triplet_margin_with_distance_loss": "triplet_margin_loss",
}
# Why there is nothing to draw of the others.
WITHOUT = {
    "Buffer": "it holds an array",
    "Statistics": "it holds the results of others",
    "adaptive_log_softmax": "it is a table of log-probabilities",
    "ctc_forced_alignment": "it is a sequence of symbols",
    "ctc_greedy_decode": "it is a sequence of labels",
    "ctc_spans": "it is a list of spans",
    "edit_distance": "it is a count",
    "linear_softmax_divergence": "it depends on two whole layers",
    "linear_softmax_statistics": "it has several results",
    "make_fenchel_young_loss": "it makes functions",
    "negative_log_likelihood": "it picks a number out of each row",
    "reduce": "it is a mean",
    "smooth_labels": "it changes labels",
    "softmax_statistics": "it has several results",
}


@functools.cache
def documented() -> dict[str, object]:
    """Every public name, from `jaxloss.huber_loss` to `jaxloss.linen.HuberLoss`."""
    return {
        f"{door}.{name}": value
        for door, (module, _) in DOORS.items()
        for name, value in public(module).items()
    }


@functools.cache
def mentioned(name: str) -> tuple[str, ...]:
    """The other public names that a docstring sends its reader to."""
    names = re.findall(r"`(jaxloss\.[\w.]+)`", str(documented()[name].__doc__))
    return tuple(dict.fromkeys(n for n in names if n in documented() and n != name))


def storey(name: str) -> int:
    """0 in the core, 1 in torch's functions, 2 in the modules."""
    return min(2, [*DOORS].index(name.rpartition(".")[0]))


def beneath(name: str) -> Iterator[str]:
    """The functions that a function or class of torch's doors stands on."""
    for other in mentioned(name):
        if storey(other) < storey(name):
            yield other
            yield from beneath(other)


def above(name: str) -> list[str]:
    return [other for other in documented() if name in beneath(other)]


@functools.cache
def drawn() -> dict[str, list[tuple[str, str, str]]]:
    return pictures.draw()


def pictures_of(name: str) -> list[tuple[str, str, str]]:
    """Its own, those of what is alike, or those of what it stands on."""
    short = name.rpartition(".")[2]
    if not storey(name):
        return drawn().get(ALIKE.get(short, short), [])
    found = [picture for other in beneath(name) for picture in pictures_of(other)]
    return list(dict.fromkeys(found))


def as_rst(line: str, in_args: bool) -> str:
    """A line of a docstring, in which only backticks mean anything beside the letters."""
    beginning, text = "", line
    if in_args and (argument := re.match(r" +\w+: ", line)):
        beginning, text = argument[0], line[argument.end() :]
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*|_\\])", r"\\\1", part) for part in parts[::2]]
    return beginning + "`".join(parts)


def as_page(name: str, lines: list[str]) -> list[str]:
    """The docstring in Sphinx's markup, then pictures and the other doors."""
    page, section = [], ""
    for line in lines:
        if header := re.match(r"([A-Z]\w+):(.*)", line):
            section = header[1]
        if section == "Source":
            line = re.sub("^Source:", "**Source:**", as_rst(line, False))
        elif section != "Example":
            line = as_rst(line, section in ("Args", "Raises"))
        page.append(line)
    return [*page, "", *picture_lines(name), "", *door_lines(name), ""]


def picture_lines(name: str) -> list[str]:
    found = pictures_of(name)
    short = name.rpartition(".")[2]
    if not found:
        bases = {other.rpartition(".")[2] for other in beneath(name)} | {short}
        reason = next((WITHOUT[base] for base in bases if base in WITHOUT), None)
        if reason is None:
            raise ExtensionError(f"{name} has neither a picture nor a reason to have none")
        return [f"There is no picture of it: {reason}."]
    lines = [".. container:: pictures", ""]
    for path, title, _ in found:
        lines += [f"   .. image:: {path}", f"      :alt: {title}", ""]
    about = f"As `{ALIKE[short]}`: " if not storey(name) and short in ALIKE else ""
    return [*lines, about + " ".join(dict.fromkeys(caption for _, _, caption in found))]


def door_lines(name: str) -> list[str]:
    others = dict.fromkeys([*beneath(name), *above(name)])
    return [".. seealso:: " + ", ".join(f"`{other}`" for other in others)] if others else []


def methods_of(owner: type) -> list[str]:
    """What the library defines for the caller of a class: `__call__`, and what is no hook."""
    # A default that is a function looks like a method.
    others = {*getattr(owner, "__dataclass_fields__", ()), *vars(linen.Module)} - {"__call__"}
    return [
        method
        for method, value in inspect.getmembers(owner, inspect.isfunction)
        if value.__module__.startswith("jaxloss.") and method not in others
        if method == "__call__" or not method.startswith("_")
    ]


def document(app, what, name, value, options, lines) -> None:
    if name in documented():
        lines[:] = as_page(name, lines)
    elif name.endswith(".__call__"):
        # Without a docstring of its own Python says that of `type`.
        lines[:] = []


def offer_methods(app, config) -> None:
    classes = {name: value for name, value in documented().items() if inspect.isclass(value)}
    config.autosummary_context["own_methods"] = {
        name: methods_of(value) for name, value in classes.items()
    }


def sign(app, what, name, value, options, signature, returned):
    """The signature of a class is that of the dataclass; what Flax adds to it is Flax's."""
    if what != "class" or not hasattr(modules, name.rpartition(".")[2]):
        return None
    plain = inspect.signature(getattr(modules, name.rpartition(".")[2]))
    text = stringify_signature(plain, show_annotation=False)
    return re.sub(r"<class '([\w.]+)'>", r"\1", text), None  # A dtype, as one writes it.


def setup(app) -> dict[str, bool]:
    app.connect("config-inited", offer_methods)
    # Before napoleon reads the sections.
    app.connect("autodoc-process-docstring", document, priority=400)
    app.connect("autodoc-process-signature", sign)
    return {"parallel_read_safe": True}
