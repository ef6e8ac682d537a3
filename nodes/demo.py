"""Two small models of emoji, of images and of clips, to try the pack without any download."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.compat import search_words
from ..host.demo_model import (
    ANY_EMOJI,
    ANY_MOTION,
    BEHIND,
    emoji_names,
    load_demo_model,
    load_video_model,
    motion_names,
    prompt_names,
)
from .inputs import CATEGORY


def demo_outputs(model: str, vae: str) -> list[io.Output]:
    """Outputs of a demo model's node; what model and VAE are is told by their tooltips."""
    return [
        io.Model.Output("model", display_name="model", tooltip=model),
        io.Conditioning.Output("positive", display_name="positive", tooltip="The prompt."),
        io.Conditioning.Output("negative", display_name="negative", tooltip="The empty prompt."),
        io.Vae.Output("vae", display_name="vae", tooltip=vae),
    ]


class DemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffDemoModel",
            display_name="BayesDiff Demo Model",
            category=CATEGORY,
            **search_words("example model", "emoji"),
            description="A small emoji model that comes with the pack: 128 by 128 pixels, latent 16 by 16.",
            inputs=[
                io.Combo.Input(
                    "prompt",
                    options=sorted(prompt_names(), key=lambda name: (not name.startswith("any "), name)),
                    default="owl",
                    tooltip="What to draw. 'Any' prompts vary with the seed and often go wrong somewhere.",
                ),
            ],
            outputs=demo_outputs("A small latent UNet of ComfyUI's SD1 class.", "The model's VAE, in TAESD's format."),
        )

    @classmethod
    def execute(cls, prompt) -> io.NodeOutput:
        return io.NodeOutput(*load_demo_model(prompt))


class DemoVideoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        emoji = [ANY_EMOJI, *sorted(emoji_names())]
        return io.Schema(
            node_id="BayesDiffDemoVideoModel",
            display_name="BayesDiff Demo Video Model",
            category=CATEGORY,
            **search_words("example model", "emoji", "clip"),
            description="A small model of emoji that move: 13 frames of 80 by 80 pixels, latent 4 by 10 by 10.",
            inputs=[
                io.Combo.Input("emoji", options=emoji, default="owl", tooltip="What moves."),
                io.Combo.Input(
                    "motion", options=[ANY_MOTION, *motion_names()], default="slides right", tooltip="How it moves."
                ),
                io.Combo.Input(
                    "front",
                    options=emoji,
                    default="doughnut",
                    tooltip=f"What it passes behind, where the motion is '{BEHIND}'. Else it is not in the clip.",
                ),
            ],
            outputs=demo_outputs("A small network of ComfyUI's Wan 2.1 class.", "The model's VAE, of Wan 2.1's class."),
        )

    @classmethod
    def execute(cls, emoji, motion, front) -> io.NodeOutput:
        return io.NodeOutput(*load_video_model(emoji, motion, front))
