"""One number a picture."""

from __future__ import annotations

from comfy_api.latest import io

from ..bayesdiff_core.scores import DEFAULT, SCORES, SEMANTIC_SCORES, inside_cells, score_table
from ..host.decode import member_features
from ..host.schema import search_words
from .types import CATEGORY, UncertaintyType


class UncertaintyScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffUncertaintyScore",
            display_name="Uncertainty Score (BayesDiff)",
            category=CATEGORY,
            **search_words("quality score", "confidence", "rank"),
            description="One number a picture, higher is less certain: of the whole picture or of the part in a mask.",
            inputs=[
                UncertaintyType.Input("uncertainty", tooltip="From any sampler (BayesDiff)."),
                io.Combo.Input(
                    "score",
                    options=[*SCORES, *SEMANTIC_SCORES],
                    default=DEFAULT,
                    tooltip="Sum: of variances, as in the paper. Mean std: what the samplers return. Median: the "
                    "picture as a whole. Upper quantile: its worst twentieth. Patch maximum: its worst spot. "
                    "Content-normalised: forgives texture and edges. Feature disagreement and entropy: how differently "
                    "a CLIP vision model sees what the picture could also have been; they want vae and clip_vision.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Score only what is masked: one mask for all pictures, or one each, of any size.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Decodes the members, for the two feature scores."),
                io.ClipVision.Input(
                    "clip_vision", optional=True, tooltip="Sees the decoded members, for the two feature scores."
                ),
            ],
            outputs=[
                io.Float.Output(
                    "scores",
                    display_name="scores",
                    is_output_list=True,
                    tooltip="One score a picture: higher is less certain. Compare them within one kind of score.",
                ),
                io.String.Output(
                    "table", display_name="table", tooltip="Every picture with its score and rank, 1 for the surest."
                ),
            ],
        )

    @classmethod
    def execute(cls, uncertainty, score, mask=None, vae=None, clip_vision=None) -> io.NodeOutput:
        uncertainty.std_map()  # no video, no NaN
        if score in SCORES:
            found = uncertainty.scores(score, mask)
        else:
            missing = [name for name, given in (("vae", vae), ("clip_vision", clip_vision)) if given is None]
            if missing:
                raise ValueError(
                    f"Expected a VAE and a CLIP vision model for the score '{score}', got no "
                    f"{' and no '.join(missing)}; connect {' and '.join(missing)}, or choose another score."
                )
            if len(uncertainty.deviations) == 0:
                raise ValueError(
                    f"Expected posterior members to see for the score '{score}', got an uncertainty that keeps none; "
                    "choose another quality in the sampler, or another score."
                )
            inside_cells(mask, *uncertainty.std_map().shape)  # no empty mask, before anything is decoded
            found = SEMANTIC_SCORES[score](member_features(vae, clip_vision, uncertainty, mask))
        scores = found.tolist()
        return io.NodeOutput(scores, score_table(scores, score))
