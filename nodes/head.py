"""Fit, save and load the posterior of a model's last layer."""

from __future__ import annotations

from comfy_api.latest import io

from ..bayesdiff_core.fit import require_laplace_torch
from ..bayesdiff_core.storage import load_head, save_head
from ..host import files
from ..host.fitting import fit_head, own_samples
from ..host.last_layer import check_latent
from .types import CATEGORY, LaplaceHeadType

files.register_folder()

OWN_SAMPLES = "the model's own samples"
GIVEN_LATENTS = "the latents given"


class FitLaplaceHead(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffFitLaplaceHead",
            display_name="Fit Laplace Head (BayesDiff)",
            category=CATEGORY,
            description="Learns how unsure a diffusion model's last layer is. Do it once a model and save the result.",
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model that you sample with."),
                io.Conditioning.Input("positive", tooltip="Prompt to fit under; a typical one of yours is best."),
                io.Conditioning.Input("negative", tooltip="Negative prompt. Its features count as much."),
                io.Latent.Input(
                    "latent",
                    tooltip="Encoded pictures to fit on, or for own samples any latent of the size that you sample at.",
                ),
                io.Combo.Input(
                    "fit_on",
                    options=[OWN_SAMPLES, GIVEN_LATENTS],
                    default=OWN_SAMPLES,
                    tooltip="Own samples need no data. Latents of real pictures tell the model about pictures that "
                    "it would not draw by itself.",
                ),
                io.Int.Input(
                    "images",
                    default=32,
                    min=1,
                    max=4096,
                    tooltip="How many own samples to draw. More make the model surer of itself.",
                ),
                io.Int.Input("steps", default=12, min=1, max=1000, tooltip="Sampling steps of each own sample."),
                io.Float.Input(
                    "cfg", default=4.0, min=0.0, max=100.0, step=0.1, tooltip="Guidance of the own samples."
                ),
                io.Int.Input(
                    "noise_levels",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="At how many noise levels each picture is seen. More are slower and more exact.",
                ),
                io.Int.Input(
                    "max_rows",
                    default=32768,
                    min=1024,
                    max=1048576,
                    step=1024,
                    tooltip="Feature rows kept in memory. Above ten times the width of the layer more hardly matter.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    tooltip="Seed of samples, noise and choice of rows.",
                ),
            ],
            outputs=[LaplaceHeadType.Output("head", tooltip="The posterior of the model's last layer.")],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, latent, fit_on, images, steps, cfg, noise_levels, max_rows, seed
    ) -> io.NodeOutput:
        require_laplace_torch()
        check_latent(model, latent)
        if fit_on == OWN_SAMPLES:
            data = own_samples(model, positive, negative, latent, images, steps, cfg, seed)
        elif not latent["samples"].any():
            raise ValueError(
                "Expected a latent of encoded pictures to fit on, got an empty latent; connect VAE Encode, or choose "
                f"'{OWN_SAMPLES}'."
            )
        else:
            data = latent["samples"]
        return io.NodeOutput(fit_head(model, positive, negative, data, noise_levels, max_rows, seed, fit_on))


class SaveLaplaceHead(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffSaveLaplaceHead",
            display_name="Save Laplace Head (BayesDiff)",
            category=CATEGORY,
            description="Writes a Laplace head to models/laplace_heads, for Load Laplace Head.",
            is_output_node=True,
            inputs=[
                LaplaceHeadType.Input("head", tooltip="The head to save."),
                io.String.Input(
                    "filename_prefix", default="head", tooltip="Name of the file; a counter is added to it."
                ),
            ],
            outputs=[LaplaceHeadType.Output("head_out", display_name="head", tooltip="The same head.")],
        )

    @classmethod
    def execute(cls, head, filename_prefix) -> io.NodeOutput:
        path = files.new_head_path(filename_prefix)
        save_head(head, path)
        return io.NodeOutput(head, ui={"text": [f"Saved {path.name}"]})


class LoadLaplaceHead(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffLoadLaplaceHead",
            display_name="Load Laplace Head (BayesDiff)",
            category=CATEGORY,
            description="Reads a Laplace head from models/laplace_heads.",
            inputs=[
                io.Combo.Input(
                    "head_name",
                    options=files.head_names(),
                    tooltip="A file that Save Laplace Head wrote. Press R to see new files.",
                )
            ],
            outputs=[LaplaceHeadType.Output("head", tooltip="The posterior of a model's last layer.")],
        )

    @classmethod
    def fingerprint_inputs(cls, head_name):
        stat = files.head_path(head_name).stat()
        return stat.st_mtime_ns, stat.st_size

    @classmethod
    def execute(cls, head_name) -> io.NodeOutput:
        return io.NodeOutput(load_head(files.head_path(head_name)))
