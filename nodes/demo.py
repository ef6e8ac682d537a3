"""A small emoji model, to try the pack without any download."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.compat import search_words
from ..host.demo_model import load_demo_model, prompt_names
from .inputs import CATEGORY


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
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="A small latent UNet of ComfyUI's SD1 class."),
                io.Conditioning.Output("positive", display_name="positive", tooltip="The prompt."),
                io.Conditioning.Output("negative", display_name="negative", tooltip="The empty prompt."),
                io.Vae.Output("vae", display_name="vae", tooltip="The model's VAE, in TAESD's format."),
            ],
        )

    @classmethod
    def execute(cls, prompt) -> io.NodeOutput:
        return io.NodeOutput(*load_demo_model(prompt))
