"""What the user sees: one file a topic, no mathematics."""

from .demo import DemoModel
from .head import FitLaplaceHead, LoadLaplaceHead, SaveLaplaceHead
from .map import UncertaintyMap
from .mask import UncertaintyToMask
from .options import UncertaintyOptionsNode
from .plot import UncertaintyPlot
from .sampler import KSamplerAdvancedBayesDiff, KSamplerBayesDiff, SamplerCustomBayesDiff
from .score import UncertaintyScore

NODES = [
    FitLaplaceHead,
    SaveLaplaceHead,
    LoadLaplaceHead,
    KSamplerBayesDiff,
    KSamplerAdvancedBayesDiff,
    SamplerCustomBayesDiff,
    UncertaintyOptionsNode,
    UncertaintyMap,
    UncertaintyToMask,
    UncertaintyScore,
    UncertaintyPlot,
    DemoModel,
]
