"""Small models that read latents and images, with random weights: a VAE of clips and a CLIP vision encoder."""

from __future__ import annotations

import json

import comfy.sd
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.ldm.wan.vae import WanVAE

# As the host tells Wan's VAE from its weights, which may be narrower than the released ones.
WAN = dict(
    z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[], temperal_downsample=[False, True, True],
    dropout=0.0,
)  # fmt: skip


def video_vae_weights(dim: int = 8) -> dict[str, torch.Tensor]:
    """Weights of a Wan VAE of another width: 8 pixels and 4 frames a cell, the first frame by itself."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, weight in sorted(WanVAE(dim=dim, **WAN).state_dict().items()):
        noise = torch.randn(weight.shape, generator=generator)
        found[name] = 1 + 0.1 * noise if "gamma" in name else noise * max(weight[0].numel(), 1) ** -0.5
    return found


def small_video_vae(dim: int = 8) -> comfy.sd.VAE:
    """Loaded as the host loads a file."""
    return comfy.sd.VAE(sd=video_vae_weights(dim), dtype=torch.float32)


def small_clip_vision(path) -> ClipVisionModel:
    """The host's class at a small size, with random weights: no meaning, but a real encoder."""
    config = dict(
        hidden_size=32, image_size=28, intermediate_size=64, num_attention_heads=2, num_channels=3, num_hidden_layers=2,
        model_type="clip_vision_model", patch_size=14, projection_dim=16, hidden_act="quick_gelu", layer_norm_eps=1e-5,
    )  # fmt: skip
    path.write_text(json.dumps(config))
    clip_vision = ClipVisionModel(path)
    generator = torch.Generator().manual_seed(0)
    for _, parameter in sorted(clip_vision.model.named_parameters()):
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return clip_vision
