"""torch.nn.functional's losses: its names, argument names, defaults, class axis and reductions."""

from jaxloss.functional.binary import binary_cross_entropy as binary_cross_entropy
from jaxloss.functional.binary import (
    binary_cross_entropy_with_logits as binary_cross_entropy_with_logits,
)
from jaxloss.functional.binary import multilabel_soft_margin_loss as multilabel_soft_margin_loss
from jaxloss.functional.binary import soft_margin_loss as soft_margin_loss
from jaxloss.functional.cross_entropy import cross_entropy as cross_entropy
from jaxloss.functional.embedding import cosine_embedding_loss as cosine_embedding_loss
from jaxloss.functional.embedding import cosine_similarity as cosine_similarity
from jaxloss.functional.embedding import pairwise_distance as pairwise_distance
from jaxloss.functional.embedding import triplet_margin_loss as triplet_margin_loss
from jaxloss.functional.embedding import (
    triplet_margin_with_distance_loss as triplet_margin_with_distance_loss,
)
from jaxloss.functional.likelihood import gaussian_nll_loss as gaussian_nll_loss
from jaxloss.functional.likelihood import kl_div as kl_div
from jaxloss.functional.likelihood import nll_loss as nll_loss
from jaxloss.functional.likelihood import poisson_nll_loss as poisson_nll_loss
from jaxloss.functional.linear import linear_cross_entropy as linear_cross_entropy
from jaxloss.functional.margin import hinge_embedding_loss as hinge_embedding_loss
from jaxloss.functional.margin import margin_ranking_loss as margin_ranking_loss
from jaxloss.functional.margin import multi_margin_loss as multi_margin_loss
from jaxloss.functional.margin import multilabel_margin_loss as multilabel_margin_loss
from jaxloss.functional.regression import huber_loss as huber_loss
from jaxloss.functional.regression import l1_loss as l1_loss
from jaxloss.functional.regression import mse_loss as mse_loss
from jaxloss.functional.regression import smooth_l1_loss as smooth_l1_loss
from jaxloss.functional.sequences import ctc_loss as ctc_loss
from jaxloss.functional.sequences import forced_align as forced_align
from jaxloss.functional.sequences import rnnt_loss as rnnt_loss
