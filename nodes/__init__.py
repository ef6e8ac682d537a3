"""What the user sees: one file a topic, no mathematics."""

from .best_of_n import KSamplerBestOfN
from .demo import DemoModel
from .filter import FilterByUncertainty
from .head import FitLaplaceHead, LoadLaplaceHead, SaveLaplaceHead
from .map import UncertaintyMap
from .mask import UncertaintyToMask
from .renoise import UncertaintyWithoutHead
from .sampler import KSamplerAdvancedBayesDiff, KSamplerBayesDiff, SamplerCustomBayesDiff

NODES = [
    FitLaplaceHead,
    SaveLaplaceHead,
    LoadLaplaceHead,
    KSamplerBayesDiff,
    KSamplerAdvancedBayesDiff,
    SamplerCustomBayesDiff,
    KSamplerBestOfN,
    UncertaintyWithoutHead,
    UncertaintyMap,
    UncertaintyToMask,
    FilterByUncertainty,
    DemoModel,
]
