"""Some images of a batch, in the host's own formats."""

from __future__ import annotations

import torch


def select_latent(latent: dict, index: list[int]) -> dict:
    """The LATENT of the images at ``index``, in that order.

    Unknown keys stay. As with the host's own Latent From Batch, ``batch_index`` says which images they were, so that
    a sampler gives each the noise that it had; a noise mask of fewer images is repeated as samplers do.
    """
    samples = latent["samples"]
    chosen = latent | {"samples": samples[index]}
    mask = latent.get("noise_mask")
    if mask is not None and mask.ndim > 2:
        chosen["noise_mask"] = cycle(mask, index)
    numbers = latent.get("batch_index", range(len(samples)))
    if len(numbers) == len(samples):
        chosen["batch_index"] = [numbers[i] for i in index]
    return chosen


def join_latents(latents: list[dict]) -> dict:
    """One LATENT of all images, the inverse of :func:`select_latent`; other keys are those of the first."""
    joined = latents[0] | {"samples": torch.cat([latent["samples"] for latent in latents])}
    masks = [latent["noise_mask"] for latent in latents if "noise_mask" in latent]
    if masks and all(len(mask) == len(latent["samples"]) for mask, latent in zip(masks, latents)):
        joined["noise_mask"] = torch.cat(masks)
    if "batch_index" in joined:
        joined["batch_index"] = [number for latent in latents for number in latent["batch_index"]]
    return joined


def select_conditioning(conditioning: list, index: list[int], count: int) -> list:
    """The CONDITIONING of the images at ``index`` of a batch of ``count``.

    What is there once for all images stays; what is there for each (prompt, pooled output, masks) is selected.
    """
    chosen = []
    for tokens, options in conditioning:
        batches = {count, len(tokens)} - {1}
        options = {
            key: cycle(value, index) if torch.is_tensor(value) and value.ndim > 1 and len(value) in batches else value
            for key, value in options.items()
        }
        chosen.append([cycle(tokens, index), options])
    return chosen


def cycle(batch: torch.Tensor, index: list[int]) -> torch.Tensor:
    """``batch[index]`` of a batch that is repeated for as long as needed, as the host does; one for all stays one."""
    return batch if len(batch) == 1 else batch[[i % len(batch) for i in index]]


def by_image(latent: dict, versions: list[torch.Tensor]) -> dict:
    """One LATENT of all versions of the first image, then all of the second, and so on."""
    count = len(latent["samples"])
    chosen = select_latent(latent, [image for image in range(count) for _ in versions])
    return chosen | {"samples": torch.stack(versions, dim=1).flatten(0, 1)}
