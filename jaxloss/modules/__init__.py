"""torch.nn's loss classes, and a few of their kind, as plain dataclasses: arguments, and the call.

`jaxloss.nnx` and `jaxloss.linen` turn them into Flax modules.
"""

from jaxloss.modules.adaptive_softmax import (
    AdaptiveLogSoftmaxWithLoss as AdaptiveLogSoftmaxWithLoss,
)
from jaxloss.modules.adaptive_softmax import AdaptiveOutput as AdaptiveOutput
from jaxloss.modules.binary import BCELoss as BCELoss
from jaxloss.modules.binary import BCEWithLogitsLoss as BCEWithLogitsLoss
from jaxloss.modules.binary import MultiLabelSoftMarginLoss as MultiLabelSoftMarginLoss
from jaxloss.modules.binary import SoftMarginLoss as SoftMarginLoss
from jaxloss.modules.contrastive import InfoNCELoss as InfoNCELoss
from jaxloss.modules.contrastive import SigmoidContrastiveLoss as SigmoidContrastiveLoss
from jaxloss.modules.cross_entropy import CrossEntropyLoss as CrossEntropyLoss
from jaxloss.modules.embedding import CosineEmbeddingLoss as CosineEmbeddingLoss
from jaxloss.modules.embedding import TripletMarginLoss as TripletMarginLoss
from jaxloss.modules.embedding import TripletMarginWithDistanceLoss as TripletMarginWithDistanceLoss
from jaxloss.modules.focal import FocalLoss as FocalLoss
from jaxloss.modules.likelihood import GaussianNLLLoss as GaussianNLLLoss
from jaxloss.modules.likelihood import KLDivLoss as KLDivLoss
from jaxloss.modules.likelihood import NLLLoss as NLLLoss
from jaxloss.modules.likelihood import NLLLoss2d as NLLLoss2d
from jaxloss.modules.likelihood import PoissonNLLLoss as PoissonNLLLoss
from jaxloss.modules.linear import LinearCrossEntropyLoss as LinearCrossEntropyLoss
from jaxloss.modules.margin import HingeEmbeddingLoss as HingeEmbeddingLoss
from jaxloss.modules.margin import MarginRankingLoss as MarginRankingLoss
from jaxloss.modules.margin import MultiLabelMarginLoss as MultiLabelMarginLoss
from jaxloss.modules.margin import MultiMarginLoss as MultiMarginLoss
from jaxloss.modules.overlap import DiceLoss as DiceLoss
from jaxloss.modules.regression import HuberLoss as HuberLoss
from jaxloss.modules.regression import L1Loss as L1Loss
from jaxloss.modules.regression import MSELoss as MSELoss
from jaxloss.modules.regression import SmoothL1Loss as SmoothL1Loss
from jaxloss.modules.sequences import CTCLoss as CTCLoss
from jaxloss.modules.sequences import RNNTLoss as RNNTLoss
