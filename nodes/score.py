"""One number per image, clip or frame."""

from __future__ import annotations

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..bayesdiff_core.reading.clip_masks import frame_masks
from ..bayesdiff_core.reading.scores import DEFAULT, SCORES, SEMANTIC_SCORES, inside_cells, score_table
from ..host.compat import search_words
from ..host.decode import member_features, seen_through
from .inputs import CATEGORY, UncertaintyType


class UncertaintyScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffUncertaintyScore",
            display_name="Uncertainty Score (BayesDiff)",
            category=CATEGORY,
            **search_words("quality score", "confidence", "rank"),
            description="One number per image or clip: higher is less certain. Scores all of it or the masked part.",
            inputs=[
                UncertaintyType.Input("uncertainty", tooltip="From any sampler (BayesDiff)."),
                io.Combo.Input(
                    "score",
                    options=[*SCORES, *SEMANTIC_SCORES],
                    default=DEFAULT,
                    tooltip="Sum: of variances, as in the paper. Mean std: what the samplers return. Root mean square: "
                    "ruled more by what stands out; what redrawing returns. Median: the image as a whole. Upper "
                    "quantile: its worst twentieth. Patch maximum: its worst spot. Content-normalised: forgives "
                    "texture and edges. Feature disagreement and entropy: how much CLIP features vary across decoded "
                    "alternatives; they need vae and clip_vision.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Score only the masked part: one mask for all images or one per image, any size; of clips "
                    "also one per frame.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Decodes the members for the two feature scores."),
                io.ClipVision.Input(
                    "clip_vision", optional=True, tooltip="Reads the decoded members for the two feature scores."
                ),
            ],
            outputs=[
                io.Float.Output(
                    "scores",
                    display_name="scores",
                    is_output_list=True,
                    tooltip="One score per image or clip: higher is less certain. Compare only scores of one kind.",
                ),
                io.String.Output(
                    "table", display_name="table", tooltip="Each image's score and rank; 1 is the most certain."
                ),
                io.Float.Output(
                    "frame_scores",
                    display_name="frame scores",
                    is_output_list=True,
                    tooltip="One score per frame of each clip, clip after clip; frames outside the mask are NaN. "
                    "Images have one frame.",
                ),
            ],
        )

    @classmethod
    def execute(cls, uncertainty, score, mask=None, vae=None, clip_vision=None) -> io.NodeOutput:
        if uncertainty.unknown:
            unknown = ExecutionBlocker(uncertainty.why_unknown)
            return io.NodeOutput(unknown, uncertainty.why_unknown, unknown)
        if score in SCORES and uncertainty.grid.time and mask is None:
            uncertainty.require_numbers()
        else:
            uncertainty.require_images()
        if score in SCORES:
            of_frames = uncertainty.frame_scores(score, mask)
            found = of_frames[:, 0] if uncertainty.frames == 1 else uncertainty.scores(score, mask)
        else:
            missing = [name for name, given in (("vae", vae), ("clip_vision", clip_vision)) if given is None]
            if missing:
                raise ValueError(
                    f"Expected a VAE and a CLIP vision model for the score '{score}', got no "
                    f"{' and no '.join(missing)}; connect {' and '.join(missing)}, or choose another score."
                )
            if len(uncertainty.deviations) == 0:
                raise ValueError(
                    f"Expected posterior members for the score '{score}', got an uncertainty without any; "
                    "choose another quality in the sampler, or another score."
                )
            uncertainty = seen_through(vae, uncertainty)
            # Rejects an empty mask before decoding.
            inside_cells(uncertainty.mask_of_cells(mask), *uncertainty.std_map().shape)
            if mask is not None and uncertainty.frames > 1:
                mask = frame_masks(mask, len(uncertainty), uncertainty.cells_in_time, uncertainty.grid)
            features = member_features(vae, clip_vision, uncertainty, mask)
            of_frames = uncertainty.by_clip(SEMANTIC_SCORES[score](features))
            found = of_frames.mean(1)
        scores = found.tolist()
        # The scale is of whole images.
        percentiles = uncertainty.percentiles(score) if mask is None and score in SCORES else None
        return io.NodeOutput(scores, score_table(scores, score, percentiles), of_frames.flatten().tolist())
