"""Small models with random weights, as files hold them: a video model, its VAE, and a CLIP vision encoder."""

from __future__ import annotations

import json

import comfy.ops
import comfy.sd
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.ldm.wan.model import WanModel
from comfy.ldm.wan.vae import WanVAE

# As the host tells Wan's VAE from its weights, which may be narrower than the released ones.
WAN = dict(
    z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[], temperal_downsample=[False, True, True],
    dropout=0.0,
)  # fmt: skip


def random_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, weight in sorted(model.state_dict().items()):
        noise = torch.randn(weight.shape, generator=generator)
        is_gain = "gamma" in name or "norm" in name and name.endswith("weight")
        found[name] = 1 + 0.1 * noise if is_gain else noise * max(weight[0].numel(), 1) ** -0.5
    return found


def video_model_weights() -> dict[str, torch.Tensor]:
    """Weights of a Wan text-to-video model of one layer of the least width that the host tells from a file."""
    model = WanModel(dim=128, ffn_dim=128, num_heads=1, num_layers=1, operations=comfy.ops.disable_weight_init)
    return random_weights(model)


def video_vae_weights(dim: int = 8) -> dict[str, torch.Tensor]:
    """Weights of a Wan VAE of another width: 8 pixels and 4 frames a cell, the first frame by itself."""
    return random_weights(WanVAE(dim=dim, **WAN))


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
