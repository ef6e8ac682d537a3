"""Small instances, with random weights, of the model families that ComfyUI runs; built from the host's own classes."""

from __future__ import annotations

import dataclasses

import comfy.supported_models as supported
import nodes
import torch
from bayesdiff.host.settings import Guidance
from factory import sampler_inputs
from family import Family
from image_families import IMAGES, MORE_IMAGES
from video_families import MORE_VIDEOS, VIDEOS

# One of each kind of network, which all hosts have.
FAMILIES = IMAGES | VIDEOS
# All that the host at hand has.
EVERY = {
    name: family for name, family in (FAMILIES | MORE_IMAGES | MORE_VIDEOS).items() if hasattr(supported, family.config)
}

STEPS, CFG = 3, Family.cfg


@dataclasses.dataclass
class Setup:
    """A small model with what a sampling run of it takes."""

    model: object
    positive: list
    negative: list
    latent: dict
    path: str
    downscale: int
    cfg: float = CFG

    @property
    def guidance(self) -> Guidance:
        return Guidance(self.positive, self.negative, self.cfg)

    def inputs(self, model=None) -> dict:
        """Inputs of a sampling run, as the stock KSampler takes them."""
        parts = (model or self.model, self.positive, self.negative)
        return sampler_inputs(parts, seed=5, steps=STEPS, cfg=self.cfg) | {"latent_image": self.latent}

    def stock(self, model=None) -> torch.Tensor:
        return nodes.KSampler().sample(**self.inputs(model))[0]["samples"]

    def run(self, model, latent) -> dict:
        return {"samples": self.stock(model)}


def set_up(name: str) -> Setup:
    family = EVERY[name]
    latent = {"samples": torch.zeros(family.latent)}
    prompts = family.conditioning(1), family.conditioning(2)
    return Setup(family.build(), *prompts, latent, family.path, family.downscale, family.cfg)
