"""What the user sees: one file per topic, no mathematics."""

from .best_of_n import KSamplerBestOfN
from .choices import take_only_offered
from .demo import DemoModel, DemoVideoModel
from .filter import FilterByUncertainty
from .head import FitLaplaceHead, LoadLaplaceHead, SaveLaplaceHead
from .map import UncertaintyMap
from .mask import UncertaintyToMask
from .options import UncertaintyOptionsNode
from .plot import UncertaintyPlot
from .renoise import UncertaintyWithoutHead
from .repair import Repair
from .resample import Resample
from .sampler import KSamplerAdvancedBayesDiff, KSamplerBayesDiff, SamplerCustomBayesDiff
from .score import UncertaintyScore
from .sound import SeparateAVUncertainty
from .stages import LatentsToUncertainty, UncertaintyToLatents
from .viewer import UncertaintyViewer

NODES = [
    FitLaplaceHead,
    SaveLaplaceHead,
    LoadLaplaceHead,
    KSamplerBayesDiff,
    KSamplerAdvancedBayesDiff,
    SamplerCustomBayesDiff,
    KSamplerBestOfN,
    Resample,
    Repair,
    UncertaintyToLatents,
    LatentsToUncertainty,
    SeparateAVUncertainty,
    UncertaintyOptionsNode,
    UncertaintyWithoutHead,
    UncertaintyMap,
    UncertaintyToMask,
    UncertaintyScore,
    UncertaintyPlot,
    UncertaintyViewer,
    FilterByUncertainty,
    DemoModel,
    DemoVideoModel,
]

for node in NODES:
    take_only_offered(node)
