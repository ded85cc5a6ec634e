"""torch.nn's losses as Flax NNX modules.

`weight` and `pos_weight` are arrays of the module's state, so they are saved in a checkpoint, but
no `nnx.Param`, so no optimiser trains them.
"""

from flax import nnx

from jaxloss import _modules as _m


class L1Loss(_m.L1Loss, nnx.Module):
    pass


class NLLLoss(_m.NLLLoss, nnx.Module):
    pass


class NLLLoss2d(_m.NLLLoss2d, nnx.Module):
    pass


class PoissonNLLLoss(_m.PoissonNLLLoss, nnx.Module):
    pass


class GaussianNLLLoss(_m.GaussianNLLLoss, nnx.Module):
    pass


class KLDivLoss(_m.KLDivLoss, nnx.Module):
    pass


class MSELoss(_m.MSELoss, nnx.Module):
    pass


class BCELoss(_m.BCELoss, nnx.Module):
    pass


class BCEWithLogitsLoss(_m.BCEWithLogitsLoss, nnx.Module):
    pass


class HingeEmbeddingLoss(_m.HingeEmbeddingLoss, nnx.Module):
    pass


class MultiLabelMarginLoss(_m.MultiLabelMarginLoss, nnx.Module):
    pass


class SmoothL1Loss(_m.SmoothL1Loss, nnx.Module):
    pass


class HuberLoss(_m.HuberLoss, nnx.Module):
    pass


class SoftMarginLoss(_m.SoftMarginLoss, nnx.Module):
    pass


class CrossEntropyLoss(_m.CrossEntropyLoss, nnx.Module):
    pass


class MultiLabelSoftMarginLoss(_m.MultiLabelSoftMarginLoss, nnx.Module):
    pass


class CosineEmbeddingLoss(_m.CosineEmbeddingLoss, nnx.Module):
    pass


class MarginRankingLoss(_m.MarginRankingLoss, nnx.Module):
    pass


class MultiMarginLoss(_m.MultiMarginLoss, nnx.Module):
    pass


class TripletMarginLoss(_m.TripletMarginLoss, nnx.Module):
    pass


class TripletMarginWithDistanceLoss(_m.TripletMarginWithDistanceLoss, nnx.Module):
    pass


class CTCLoss(_m.CTCLoss, nnx.Module):
    pass
