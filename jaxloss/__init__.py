"""The torch.nn losses for JAX: one loss per example, right at the awkward points.

`jaxloss.functional` has torch.nn.functional's names and conventions; `jaxloss.nnx` and
`jaxloss.linen` have torch.nn's classes as Flax modules.
"""

import importlib as _importlib
import sys as _sys
import typing as _typing

from jaxloss import functional as functional
from jaxloss._base.reduction import reduce as reduce
from jaxloss.core.adaptive_softmax import adaptive_log_softmax as adaptive_log_softmax
from jaxloss.core.adaptive_softmax import (
    adaptive_softmax_cross_entropy as adaptive_softmax_cross_entropy,
)
from jaxloss.core.binary import binary_cross_entropy as binary_cross_entropy
from jaxloss.core.binary import multilabel_soft_margin_loss as multilabel_soft_margin_loss
from jaxloss.core.binary import sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy
from jaxloss.core.binary import soft_margin_loss as soft_margin_loss
from jaxloss.core.contrastive.loss import info_nce_loss as info_nce_loss
from jaxloss.core.contrastive.loss import sigmoid_contrastive_loss as sigmoid_contrastive_loss
from jaxloss.core.contrastive.loss import supervised_contrastive_loss as supervised_contrastive_loss
from jaxloss.core.contrastive.ntxent import ntxent as ntxent
from jaxloss.core.contrastive.ntxent import ntxent_per_example as ntxent_per_example
from jaxloss.core.cosine import cosine_distance as cosine_distance
from jaxloss.core.cosine import cosine_similarity as cosine_similarity
from jaxloss.core.cross_entropy import softmax_cross_entropy as softmax_cross_entropy
from jaxloss.core.cross_entropy import (
    softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels,
)
from jaxloss.core.divergence import convex_kl_divergence as convex_kl_divergence
from jaxloss.core.divergence import generalized_kl_divergence as generalized_kl_divergence
from jaxloss.core.embedding import cosine_embedding_loss as cosine_embedding_loss
from jaxloss.core.embedding import pairwise_distance as pairwise_distance
from jaxloss.core.embedding import triplet_margin_loss as triplet_margin_loss
from jaxloss.core.embedding import (
    triplet_margin_with_distance_loss as triplet_margin_with_distance_loss,
)
from jaxloss.core.focal import poly_loss_cross_entropy as poly_loss_cross_entropy
from jaxloss.core.focal import safe_softmax_cross_entropy as safe_softmax_cross_entropy
from jaxloss.core.focal import sigmoid_focal_loss as sigmoid_focal_loss
from jaxloss.core.focal import (
    softmax_focal_loss_with_integer_labels as softmax_focal_loss_with_integer_labels,
)
from jaxloss.core.hinge import hinge_loss as hinge_loss
from jaxloss.core.hinge import multiclass_hinge_loss as multiclass_hinge_loss
from jaxloss.core.hinge import multiclass_perceptron_loss as multiclass_perceptron_loss
from jaxloss.core.hinge import perceptron_loss as perceptron_loss
from jaxloss.core.likelihood import gaussian_nll_loss as gaussian_nll_loss
from jaxloss.core.likelihood import kl_divergence as kl_divergence
from jaxloss.core.likelihood import kl_divergence_with_log_targets as kl_divergence_with_log_targets
from jaxloss.core.likelihood import negative_log_likelihood as negative_log_likelihood
from jaxloss.core.likelihood import poisson_nll_loss as poisson_nll_loss
from jaxloss.core.linear.divergence import (
    linear_softmax_divergence as linear_softmax_divergence,
)
from jaxloss.core.linear.loss import (
    linear_softmax_cross_entropy as linear_softmax_cross_entropy,
)
from jaxloss.core.linear.statistics import (
    linear_softmax_statistics as linear_softmax_statistics,
)
from jaxloss.core.margin import hinge_embedding_loss as hinge_embedding_loss
from jaxloss.core.margin import margin_ranking_loss as margin_ranking_loss
from jaxloss.core.margin import multi_margin_loss as multi_margin_loss
from jaxloss.core.margin import multilabel_margin_loss as multilabel_margin_loss
from jaxloss.core.overlap import binary_dice_loss as binary_dice_loss
from jaxloss.core.overlap import dice_loss as dice_loss
from jaxloss.core.overlap import (
    multiclass_generalized_dice_loss as multiclass_generalized_dice_loss,
)
from jaxloss.core.overlap import tversky_loss as tversky_loss
from jaxloss.core.ranking import ranking_softmax_loss as ranking_softmax_loss
from jaxloss.core.regression import absolute_error as absolute_error
from jaxloss.core.regression import huber_loss as huber_loss
from jaxloss.core.regression import l2_loss as l2_loss
from jaxloss.core.regression import log_cosh as log_cosh
from jaxloss.core.regression import smooth_l1_loss as smooth_l1_loss
from jaxloss.core.regression import squared_error as squared_error
from jaxloss.core.sequences.alignment import ctc_forced_alignment as ctc_forced_alignment
from jaxloss.core.sequences.alignment import ctc_greedy_decode as ctc_greedy_decode
from jaxloss.core.sequences.alignment import ctc_spans as ctc_spans
from jaxloss.core.sequences.alignment import edit_distance as edit_distance
from jaxloss.core.sequences.ctc import ctc_alignment as ctc_alignment
from jaxloss.core.sequences.ctc import ctc_loss as ctc_loss
from jaxloss.core.sequences.forward import (
    ctc_loss_with_forward_probs as ctc_loss_with_forward_probs,
)
from jaxloss.core.sequences.rnnt import rnnt_loss as rnnt_loss
from jaxloss.core.sequences.rnnt_of_sum import rnnt_loss_of_sum as rnnt_loss_of_sum
from jaxloss.core.smoothing import smooth_labels as smooth_labels
from jaxloss.core.sparsemax import make_fenchel_young_loss as make_fenchel_young_loss
from jaxloss.core.sparsemax import multiclass_sparsemax_loss as multiclass_sparsemax_loss
from jaxloss.core.sparsemax import sparsemax_loss as sparsemax_loss
from jaxloss.core.statistics import Statistics as Statistics
from jaxloss.core.statistics import softmax_statistics as softmax_statistics

__version__ = "0.2.0"

if not _typing.TYPE_CHECKING:  # To a type checker it would mean that every name exists.

    def __getattr__(name: str) -> _typing.NoReturn:
        words = f"module 'jaxloss' has no attribute {name!r}"
        if name in ("nnx", "linen"):
            words += f" before `import jaxloss.{name}`"
        elif not name.startswith("_"):
            if callable(getattr(functional, name, None)):
                words += "; torch's functions are in `jaxloss.functional`"
            elif callable(getattr(_importlib.import_module("jaxloss.modules"), name, None)):
                words += "; torch's classes are in `jaxloss.nnx` and `jaxloss.linen`"
        raise AttributeError(words, name=name, obj=_sys.modules[__name__])
