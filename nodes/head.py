"""Fit, save and load the posterior of a model's last layer."""

from __future__ import annotations

from comfy_api.latest import io

from ..bayesdiff_core.posterior.fit import require_laplace_torch
from ..bayesdiff_core.posterior.laplace_head import STRUCTURES
from ..bayesdiff_core.posterior.storage import DTYPES, load_head, save_head
from ..host import files
from ..host.compat import ADVANCED, search_words
from ..host.fit import (
    Example,
    FitSettings,
    as_examples,
    examples_from_folder,
    examples_from_images,
    fit_head,
    own_samples,
    require_no_guides,
)
from ..host.latents import check_latent
from ..host.nested import parts_of
from ..host.settings import Guidance, Part
from .inputs import CATEGORY, LaplaceHeadType

files.register_folder()

OWN_SAMPLES, LATENTS, IMAGES, FOLDER = "own samples", "latents", "images", "folder"


class FitLaplaceHead(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffFitLaplaceHead",
            display_name="Fit Laplace Head (BayesDiff)",
            category=CATEGORY,
            **search_words("Bayesian", "posterior", "last-layer Laplace"),
            description="Fits a Laplace head: how unsure a diffusion model's last layer is. Fit once per model and "
            "save the head.",
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model that you sample with."),
                io.Conditioning.Input("positive", tooltip="Prompt to fit under; a typical one of yours is best."),
                io.Conditioning.Input("negative", tooltip="Negative prompt. Its features count equally."),
                io.Latent.Input(
                    "latent", tooltip="An empty latent of the size that you sample at, or the latents to fit on."
                ),
                io.Combo.Input(
                    "fit_on",
                    options=[OWN_SAMPLES, LATENTS, IMAGES, FOLDER],
                    default=OWN_SAMPLES,
                    tooltip="Own samples: needs no data. Latents: the input latent. Images: the input image, via the "
                    "VAE. Folder: the images in a folder, via the VAE.",
                ),
                io.Int.Input(
                    "samples",
                    default=32,
                    min=1,
                    max=4096,
                    tooltip="Own samples only: how many. More images lower the estimated uncertainty.",
                ),
                io.Int.Input(
                    "steps",
                    default=12,
                    min=1,
                    max=1000,
                    tooltip="Steps of own samples, and of the images that the head learns from.",
                ),
                io.Float.Input(
                    "cfg",
                    default=4.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="The cfg that you sample with. At 1 the negative prompt is not used.",
                ),
                io.Int.Input(
                    "noise_levels",
                    default=8,
                    min=1,
                    max=64,
                    **ADVANCED,
                    tooltip="At how many sigmas to fit each image. More is slower and more exact.",
                ),
                io.Combo.Input(
                    "structure",
                    options=list(STRUCTURES),
                    default=STRUCTURES[0],
                    **ADVANCED,
                    tooltip="Low-rank: a few per cent off, smaller file. Full: exact. Diag: the paper's, without "
                    "correlations.",
                ),
                io.Float.Input(
                    "explained_variance",
                    default=0.99,
                    min=0.5,
                    max=1.0,
                    step=0.001,
                    round=0.0001,
                    **ADVANCED,
                    tooltip="Low-rank only: share of the features' energy to keep exactly.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    # Set explicitly: otherwise the page adds the control to every seed and each run fits a new head.
                    control_after_generate=False,
                    tooltip="Seed of samples, noise and chosen positions.",
                ),
                io.Combo.Input(
                    "folder",
                    options=files.image_folders(),
                    default=files.INPUT,
                    tooltip="Folder only: the image folder, inside ComfyUI's input folder. Images are cropped to the "
                    "latent's size. A .txt file of the same name is the caption.",
                ),
                io.Image.Input(
                    "image", optional=True, tooltip="Images only: images to fit on, cropped to the latent's size."
                ),
                io.Vae.Input("vae", optional=True, tooltip="The model's VAE, to encode images."),
                io.Clip.Input(
                    "clip", optional=True, tooltip="Encodes the captions of a folder; without it, positive is used."
                ),
                # Saved graphs store numbers by position: what came later stands last.
                io.Int.Input(
                    "own_images",
                    default=FitSettings.own_images,
                    min=0,
                    max=256,
                    optional=True,
                    **ADVANCED,
                    tooltip="From how many of the model's own images the head learns where and how much they vary; "
                    "each is sampled twice. 0: not at all, then quality 'instant' is a first look only.",
                ),
                *(
                    io.Float.Input(
                        f"{end}_share",
                        default=default,
                        min=0.0,
                        max=1.0,
                        step=0.01,
                        optional=True,
                        **ADVANCED,
                        tooltip=f"Where the part of the schedule {verb} that this model samples: 0 is pure noise, 1 "
                        "the image. For one of two experts, such as Wan 2.2's.",
                    )
                    for end, default, verb in (("from", 0.0, "begins"), ("to", 1.0, "ends"))
                ),
            ],
            outputs=[
                LaplaceHeadType.Output("head", display_name="head", tooltip="The posterior of the model's last layer.")
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, fit_on=OWN_SAMPLES, folder=files.INPUT, **inputs):
        return files.image_fingerprint(folder) if fit_on == FOLDER else None

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        latent,
        fit_on,
        samples,
        steps,
        cfg,
        noise_levels,
        structure,
        explained_variance,
        seed,
        folder,
        own_images=FitSettings.own_images,
        from_share=0.0,
        to_share=1.0,
        **given,
    ) -> io.NodeOutput:
        require_laplace_torch()
        check_latent(model, latent)
        require_inputs(fit_on, given)
        require_no_sound(fit_on, latent)
        require_no_guides(positive, negative)
        part = part_of_schedule(from_share, to_share, fit_on)
        source = fit_on
        if fit_on == OWN_SAMPLES:
            guidance = Guidance(positive, negative, cfg)
            data = as_examples(own_samples(model, guidance, latent, samples, steps, seed, part), positive)
        elif fit_on == LATENTS:
            data = encoded_latents(latent, positive)
        elif fit_on == IMAGES:
            data = examples_from_images(model, given["vae"], given["image"], positive, latent)
        else:
            paths = files.image_paths(folder)
            data, captions = examples_from_folder(model, given["vae"], paths, given.get("clip"), positive, latent)
            source = f"{folder}, {captions} of {len(paths)} with captions"
        settings = FitSettings(
            cfg, noise_levels, seed, structure, explained_variance, source, part, own_images=own_images, steps=steps
        )
        return io.NodeOutput(fit_head(model, data, negative, settings))


def part_of_schedule(first: float, last: float, fit_on: str) -> Part:
    """The part of the schedule to fit for.

    Raises:
        ValueError: it is empty, or the model cannot sample its own images for it.
    """
    if first >= last:
        raise ValueError(
            f"Expected from_share below to_share, got {first:g} and {last:g}; 0 is pure noise, 1 the image."
        )
    if first > 0 and fit_on == OWN_SAMPLES:
        raise ValueError(
            f"Expected images to fit on for a part of the schedule that begins at {first:g}, since the model alone "
            f"cannot sample them from noise, got '{fit_on}'; set fit_on to '{LATENTS}' and connect what both models "
            "sampled."
        )
    return Part(first, last)


def encoded_latents(latent: dict, positive: list) -> list[Example]:
    """The latents that were given, as data.

    Raises:
        ValueError: they are empty.
    """
    if not any(part.any() for part in parts_of(latent["samples"])):
        raise ValueError(
            "Expected a latent of encoded images to fit on, got an empty latent; connect VAE Encode, or set "
            f"fit_on to '{OWN_SAMPLES}'."
        )
    return as_examples(latent["samples"], positive)


def require_no_sound(fit_on: str, latent: dict) -> None:
    """Refuse to fit on pictures alone where latents have sound too.

    Raises:
        ValueError: the latent is nested.
    """
    if fit_on in (IMAGES, FOLDER) and latent["samples"].is_nested:
        raise ValueError(
            f"Expected '{OWN_SAMPLES}' or '{LATENTS}' to fit on a model that samples picture and sound together, got "
            f"'{fit_on}', which have no sound; set fit_on to one of these."
        )


def require_inputs(fit_on: str, given: dict) -> None:
    """Make sure that the inputs are connected that a kind of data needs.

    Raises:
        ValueError: some are not.
    """
    needed = {IMAGES: ("vae", "image"), FOLDER: ("vae",)}.get(fit_on, ())
    if missing := [name for name in needed if given.get(name) is None]:
        raise ValueError(
            f"Expected the input {' and the input '.join(missing)} to fit on '{fit_on}', got nothing there; "
            f"connect {'it' if len(missing) == 1 else 'them'}, or set fit_on to '{OWN_SAMPLES}'."
        )


class SaveLaplaceHead(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffSaveLaplaceHead",
            display_name="Save Laplace Head (BayesDiff)",
            category=CATEGORY,
            **search_words("posterior"),
            description="Saves a Laplace head to models/laplace_heads, for Load Laplace Head.",
            is_output_node=True,
            inputs=[
                LaplaceHeadType.Input("head", tooltip="The head to save."),
                io.String.Input("filename_prefix", default="head", tooltip="File name; a counter is added to it."),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="float32",
                    tooltip="float16 halves the file and changes variances by less than a thousandth, bfloat16 by less "
                    "than a hundredth.",
                ),
            ],
            outputs=[LaplaceHeadType.Output("head_out", display_name="head", tooltip="The same head.")],
        )

    @classmethod
    def execute(cls, head, filename_prefix, dtype) -> io.NodeOutput:
        path = files.new_head_path(filename_prefix)
        save_head(head, path, DTYPES[dtype])
        return io.NodeOutput(head, ui={"text": [f"Saved {path.name}"]})


class LoadLaplaceHead(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BayesDiffLoadLaplaceHead",
            display_name="Load Laplace Head (BayesDiff)",
            category=CATEGORY,
            **search_words("posterior"),
            description="Loads a Laplace head from models/laplace_heads.",
            inputs=[
                io.Combo.Input(
                    "head_name",
                    options=files.head_names(),
                    tooltip="A file from Save Laplace Head. Press R to see new files.",
                )
            ],
            outputs=[
                LaplaceHeadType.Output("head", display_name="head", tooltip="The posterior of a model's last layer.")
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, head_name):
        stat = files.head_path(head_name).stat()
        return stat.st_mtime_ns, stat.st_size

    @classmethod
    def execute(cls, head_name) -> io.NodeOutput:
        return io.NodeOutput(load_head(files.head_path(head_name)))
