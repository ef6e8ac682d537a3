"""From latents to images, frames and their features, by the user's VAE and CLIP vision model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import comfy.model_management
import comfy.utils
import torch
import torch.nn.functional as F
from comfy.clip_vision import ClipVisionModel
from comfy.sd import VAE

from ..bayesdiff_core.reading.grid import LatentGrid
from ..bayesdiff_core.reading.maps import antithetic_draws, pixel_variance
from ..bayesdiff_core.reading.uncertainty import Uncertainty

# Of fewer members the decoded draws below show better where an image varies, if not how much: see docs/maps.md.
ENOUGH_MEMBERS = 3
PAIRS = 4


def seen_through(vae: VAE, uncertainty: Uncertainty) -> Uncertainty:
    """The uncertainty with the VAE's own pixels and frames of a latent cell.

    Raises:
        ValueError: neither the model's latent format nor a rule of one frame first and as many for each later latent
            frame tells how many frames the VAE decodes to.
    """
    pixels, cells = vae.spacial_compression_decode(), uncertainty.cells_in_time
    grid = LatentGrid(pixels, vae.temporal_compression_decode() or 1)
    found = dataclasses.replace(uncertainty, grid=grid)
    if found.frames > 1 and (frames := vae.upscale_ratio[0](cells)) != found.frames:
        if uncertainty.frames == frames:
            return dataclasses.replace(uncertainty, grid=uncertainty.grid._replace(pixels=pixels))
        raise ValueError(
            f"Expected a VAE that decodes {found.cells_in_time} latent frames to {found.frames} frames, the first to "
            f"one and each later one to {grid.frames}, got one that decodes them to {frames}; connect the VAE of the "
            "model. If it is that one, its clips have no maps yet."
        )
    return found


def decode(vae: VAE, latent: torch.Tensor, tile: int | None = None) -> torch.Tensor:
    """Images ``(n, height, width, 3)`` of latents, in tiles of so many pixels a side if asked.

    Clips decode to their frames, clip after clip ``(n * frames, height, width, 3)``, as the stock VAE Decode.
    """
    if tile is None:
        image = vae.decode(latent)
    else:
        side = tile // vae.spacial_compression_decode()
        image = vae.decode_tiled(latent, tile_x=side, tile_y=side, overlap=side // 4)
    return image.reshape(-1, *image.shape[-3:])[..., :3]


def decode_all(
    vae: VAE, latents: Iterable[torch.Tensor], count: int, tile: int | None = None
) -> Iterator[torch.Tensor]:
    """Decode ``count`` batches, one at a time, under one progress bar (in tiles the host shows its own)."""
    bar = comfy.utils.ProgressBar(count)
    for latent in latents:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield decode(vae, latent, tile)
        if tile is None:
            bar.update(1)


def decoded_std(
    vae: VAE, uncertainty: Uncertainty, image: torch.Tensor, tile: int | None = None, pairs: int = PAIRS
) -> torch.Tensor:
    """Standard deviation of the decoded image in each pixel, ``(n, height, width)``, in units of colour from 0 to 1.

    Of clips in each pixel of each frame, clip after clip.

    Of decoded members where the uncertainty has at least three; else of antithetic draws from its variance, cell by
    cell independent, always the same ones.

    Args:
        image: ``(n, height, width, 3)``, the decoded latent, as :func:`decode` returns it.
    """
    changes: Iterable[torch.Tensor] = uncertainty.deviations
    count = len(uncertainty.deviations)
    if count < ENOUGH_MEMBERS:
        changes, count = (
            antithetic_draws(uncertainty.variance.cpu(), pairs, torch.Generator().manual_seed(0)),
            2 * pairs,
        )
    latents = (uncertainty.latent + change.to(uncertainty.latent) for change in changes)
    return pixel_variance(image, decode_all(vae, latents, count, tile)).sqrt()


def member_features(
    vae: VAE, clip_vision: ClipVisionModel, uncertainty: Uncertainty, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Features of the decoded latent and of its members, ``(k + 1, n, d)``; of clips ``(k + 1, n * frames, d)``.

    Args:
        mask: ``(n or 1, height, width)``, of clips ``(n or 1, 1 or frames, height, width)``; outside it, members are
            shown as the image itself.
    """
    nominal, found = None, []
    changes = [torch.zeros_like(uncertainty.latent), *uncertainty.deviations]
    for image in decode_all(vae, (uncertainty.latent + change for change in changes), len(changes)):
        nominal = image if nominal is None else nominal
        if mask is not None:
            planes = mask.reshape(len(mask), -1, *mask.shape[-2:]).float()
            inside = F.interpolate(planes, size=image.shape[1:3], mode="area")[..., None].to(image)
            image = torch.lerp(uncertainty.by_clip(nominal), uncertainty.by_clip(image), inside).flatten(0, 1)
        # Squeezed to the encoder's square, not cropped: all of an image counts.
        found.append(clip_vision.encode_image(image, crop=False)["image_embeds"].float().cpu())
    return torch.stack(found)
