"""Records what torch answers to the calls of torch_cases.py: python tests/record_torch_reference.py

Needs torch 2.13. Writes torch_reference.npz and torch_signatures.json beside itself.
"""

from __future__ import annotations

import inspect
import json
import pathlib
import re
import warnings

import numpy as np
import torch  # pyright: ignore[reportMissingImports]  An extra that need not be there.
from torch_cases import FROM_LOGITS, Call, calls, cotangent

HERE = pathlib.Path(__file__).parent
FUNCTIONS = """
    l1_loss mse_loss smooth_l1_loss huber_loss nll_loss poisson_nll_loss gaussian_nll_loss kl_div
    binary_cross_entropy binary_cross_entropy_with_logits hinge_embedding_loss
    multilabel_margin_loss soft_margin_loss cross_entropy linear_cross_entropy
    multilabel_soft_margin_loss cosine_embedding_loss margin_ranking_loss multi_margin_loss
    triplet_margin_loss triplet_margin_with_distance_loss ctc_loss pairwise_distance
    cosine_similarity
""".split()
CLASSES = """
    L1Loss NLLLoss NLLLoss2d PoissonNLLLoss GaussianNLLLoss KLDivLoss MSELoss BCELoss
    BCEWithLogitsLoss HingeEmbeddingLoss MultiLabelMarginLoss SmoothL1Loss HuberLoss SoftMarginLoss
    CrossEntropyLoss LinearCrossEntropyLoss MultiLabelSoftMarginLoss CosineEmbeddingLoss
    MarginRankingLoss MultiMarginLoss TripletMarginLoss TripletMarginWithDistanceLoss CTCLoss
    AdaptiveLogSoftmaxWithLoss
""".split()


def ask(call: Call) -> tuple[np.ndarray, list[np.ndarray]]:
    """torch's value and gradients, in float64."""
    args = [torch.from_numpy(a.copy()) if isinstance(a, np.ndarray) else a for a in call.args]
    leaves = [args[p].requires_grad_() for p in call.differentiable]
    if call.function in FROM_LOGITS:
        args[0] = args[0].log_softmax(-1)
    options = {
        k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in call.options.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = getattr(torch.nn.functional, call.function)(*args, **options)
    weights = torch.from_numpy(cotangent(value.detach().numpy()))
    gradients = torch.autograd.grad((value * weights).sum(), leaves)
    return value.detach().numpy(), [g.resolve_conj().numpy() for g in gradients]


def parameters(signature: inspect.Signature) -> list[list[object]]:
    return [
        [p.name, p.kind.name, None if p.default is p.empty else repr(p.default)]
        for p in signature.parameters.values()
        if p.name != "self"
    ]


def builtin_parameters(function) -> list[list[object]]:
    """Of a function without a signature, from the first line of its documentation."""
    (first,) = re.findall(r"^\w+\((.*?)\)", function.__doc__.strip())
    listed = first.split(", ")
    pairs = [(*item.split("="), None)[:2] for item in listed]
    return [[name, "POSITIONAL_OR_KEYWORD", default] for name, default in pairs]


def signature_of(function) -> list[list[object]]:
    try:
        return parameters(inspect.signature(function))
    except ValueError:
        return builtin_parameters(function)


def main() -> None:
    arrays = {}
    for call in calls():
        value, gradients = ask(call)
        arrays[f"{call.name}/value"] = value
        arrays |= {f"{call.name}/gradient{i}": g for i, g in enumerate(gradients)}
    np.savez_compressed(HERE / "torch_reference.npz", **arrays)
    signatures = {name: signature_of(getattr(torch.nn.functional, name)) for name in FUNCTIONS}
    for name in CLASSES:
        cls = getattr(torch.nn, name)
        signatures[name] = parameters(inspect.signature(cls.__init__))
        signatures[f"{name}.forward"] = parameters(inspect.signature(cls.forward))
    text = json.dumps(signatures, indent=1)
    (HERE / "torch_signatures.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
