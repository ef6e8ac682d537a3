"""A small emoji model, so that the pack can be tried without any download."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.demo_model import load_demo_model, prompt_names
from ..host.schema import search_words
from .types import CATEGORY


class DemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffDemoModel",
            display_name="BayesDiff Demo Model",
            category=CATEGORY,
            **search_words("example model", "emoji"),
            description="A small model of emoji at 128 by 128 pixels (latent 16 by 16) that comes with the pack.",
            inputs=[
                io.Combo.Input(
                    "prompt",
                    options=sorted(prompt_names(), key=lambda name: (not name.startswith("any "), name)),
                    default="owl",
                    tooltip="What to draw. Any of a kind varies with the seed and often goes wrong somewhere.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model", display_name="model", tooltip="A small latent UNet of the host's own SD1 class."
                ),
                io.Conditioning.Output("positive", display_name="positive", tooltip="The prompt."),
                io.Conditioning.Output("negative", display_name="negative", tooltip="The empty prompt."),
                io.Vae.Output("vae", display_name="vae", tooltip="Its autoencoder, in TAESD's format."),
            ],
        )

    @classmethod
    def execute(cls, prompt) -> io.NodeOutput:
        return io.NodeOutput(*load_demo_model(prompt))
