"""What the user sees: one file a topic, no mathematics."""

from .demo import DemoModel
from .filter import FilterByUncertainty
from .head import FitLaplaceHead, LoadLaplaceHead, SaveLaplaceHead
from .map import UncertaintyMap
from .mask import UncertaintyToMask
from .sampler import KSamplerAdvancedBayesDiff, KSamplerBayesDiff, SamplerCustomBayesDiff

NODES = [
    FitLaplaceHead,
    SaveLaplaceHead,
    LoadLaplaceHead,
    KSamplerBayesDiff,
    KSamplerAdvancedBayesDiff,
    SamplerCustomBayesDiff,
    UncertaintyMap,
    UncertaintyToMask,
    FilterByUncertainty,
    DemoModel,
]
