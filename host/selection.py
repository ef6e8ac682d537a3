"""Some images of a batch, in the host's own formats."""

from __future__ import annotations

import torch

from .conditioning import rows
from .nested import by_part, count_of, joined, parts_of, whole


def select_latent(latent: dict, index: list[int]) -> dict:
    """The LATENT of the images at ``index``, in that order.

    Unknown keys stay. As with the host's own Latent From Batch, ``batch_index`` says which images they were, so that
    a sampler gives each the noise that it had; noise masks of fewer images are repeated as samplers do.
    """
    samples, mask = latent["samples"], latent.get("noise_mask")
    count = count_of(samples)
    chosen = latent | {"samples": by_part(lambda part: part[index], samples)}
    if mask is not None:
        chosen["noise_mask"] = select_mask(mask, samples, index)
    numbers = latent.get("batch_index") or list(range(count))
    if len(numbers) == count:
        chosen["batch_index"] = [numbers[i] for i in index]
    return chosen


def select_mask(mask: torch.Tensor, samples: torch.Tensor, index: list[int]) -> torch.Tensor:
    """The noise masks of the images at ``index``; one that is for all stays."""
    if mask.is_nested:
        return by_part(lambda part, of: select_mask(part, of, index), mask, samples)
    samples = parts_of(samples)[0]
    masks = images_first(mask, samples)
    return rows(masks, index, len(samples)) if len(masks) > 1 else mask


def join_latents(latents: list[dict]) -> dict:
    """One LATENT of all images, the inverse of :func:`select_latent`; other keys are those of the first.

    Raises:
        ValueError: noise masks of several sizes.
    """
    found = latents[0] | {"samples": joined([latent["samples"] for latent in latents])}
    if any(latent.get("noise_mask") is not None for latent in latents):
        found["noise_mask"] = join_masks(latents)
    # Without numbers, an image had the noise of its place.
    numbers = [latent.get("batch_index") or range(count_of(latent["samples"])) for latent in latents]
    found["batch_index"] = [number for part in numbers for number in part]
    return found


def join_masks(latents: list[dict]) -> torch.Tensor:
    """The noise masks of all images: that of the first if it is one and the same for all, else ``(n, ...)``."""
    if latents[0]["samples"].is_nested:
        return join_nested_masks(latents)
    masks = [latent.get("noise_mask") for latent in latents]
    given = [images_first(mask, latent["samples"]) for mask, latent in zip(masks, latents) if mask is not None]
    first = given[0]
    if any(mask.shape[1:] != first.shape[1:] for mask in given):
        sizes = ", ".join(str(tuple(mask.shape)) for mask in given)
        raise ValueError(
            f"Expected noise masks of one size, got {sizes}; set them anew with Set Latent Noise Mask after the "
            "latents are joined."
        )
    if len(given) == len(masks) and all(len(mask) == 1 and torch.equal(mask, first) for mask in given):
        return latents[0]["noise_mask"]
    found = []
    for latent, mask in zip(latents, masks):
        size = len(latent["samples"])
        # Without a mask the sampler draws everywhere.
        mask = torch.ones_like(first[:1]) if mask is None else images_first(mask, latent["samples"])
        found.append(rows(mask, list(range(size)), size).expand(size, *mask.shape[1:]))
    return torch.cat(found)


def join_nested_masks(latents: list[dict]) -> torch.Tensor:
    """:func:`join_masks` of nested latents, part by part; a plain mask is that of the first part."""
    parts = []
    for number in range(len(parts_of(latents[0]["samples"]))):
        same = [{"samples": parts_of(latent["samples"])[number]} for latent in latents]
        for one, latent in zip(same, latents):
            masks = [] if latent.get("noise_mask") is None else parts_of(latent["noise_mask"])
            # Where there is none the sampler draws everywhere.
            one["noise_mask"] = masks[number] if number < len(masks) else torch.ones_like(one["samples"][:, :1])
        parts.append(join_masks(same))
    return whole(parts)


def images_first(mask: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    """A noise mask as ``(k, ...)``: one for each of the first ``k`` images, or one for all."""
    if mask.ndim == 2:
        return mask[None]
    is_clip = samples.ndim == 5 and mask.ndim < 5
    if is_clip and not (samples.shape[2] == 1 and len(mask) in (1, len(samples))):
        # The host takes these for the frames of one clip, and gives them to all.
        return mask.reshape(1, 1, -1, *mask.shape[-2:])
    return mask


def by_image(latent: dict, versions: list[torch.Tensor]) -> dict:
    """One LATENT of all versions of the first image, then all of the second, and so on."""
    count = count_of(latent["samples"])
    chosen = select_latent(latent, [image for image in range(count) for _ in versions])
    return chosen | {"samples": by_part(lambda *same: torch.stack(same, dim=1).flatten(0, 1), *versions)}
