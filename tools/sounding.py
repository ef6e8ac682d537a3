"""Small instances, with random weights, of models that sample a nested latent: a clip with its sound.

LTX-2 and MiniMax H3 where the host has them; and on any host a model of our own, made of the host's Wan and of one of
its blocks for the sound, in which either part hears of the other.
"""

from __future__ import annotations

import dataclasses

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.supported_models as supported
import torch
from comfy.ldm.wan.model import WanModel, sinusoidal_embedding_1d
from comfy.nested_tensor import NestedTensor
from families import Setup
from family import Family

SOUND_WIDTH, BINS = 32, 4


class SoundingWanModel(WanModel):
    """Wan, with a sound ``(n, 8, t, 4)`` beside the clip."""

    def __init__(self, *args, device=None, dtype=None, operations=None, **options):
        super().__init__(*args, device=device, dtype=dtype, operations=operations, **options)
        made = {"device": device, "dtype": dtype}
        self.sound_in = operations.Linear(8 * BINS, SOUND_WIDTH, **made)
        self.sound_heard = operations.Linear(SOUND_WIDTH, options["text_dim"], **made)
        self.picture_seen = operations.Linear(16, SOUND_WIDTH, **made)
        self.sound_block = operations.Linear(2 * SOUND_WIDTH, SOUND_WIDTH, **made)
        self.sound_norm = operations.LayerNorm(SOUND_WIDTH, elementwise_affine=False, **made)
        self.sound_out = operations.Linear(SOUND_WIDTH, 8 * BINS, **made)

    def forward(self, x, timestep, context, **options):
        picture, sound = x
        tokens = self.sound_in(sound.movedim(1, 2).flatten(2))
        tokens = tokens + sinusoidal_embedding_1d(SOUND_WIDTH, timestep.flatten()[: len(tokens)])[:, None].to(tokens)
        picture_out = super().forward(picture, timestep, torch.cat([context, self.sound_heard(tokens)], 1), **options)
        seen = self.picture_seen(picture.mean((2, 3, 4)))[:, None].expand_as(tokens)
        tokens = tokens + torch.tanh(self.sound_block(torch.cat([tokens, seen], -1)))
        sound_out = self.sound_out(self.sound_norm(tokens)).unflatten(2, (8, BINS)).movedim(2, 1)
        return [picture_out, sound_out]


class SoundingWan(comfy.model_base.BaseModel):
    """The host's model of it."""

    def __init__(self, model_config, device=None):
        super().__init__(model_config, comfy.model_base.ModelType.FLOW, device, SoundingWanModel)

    def extra_conds(self, **given):
        return super().extra_conds(**given) | {
            "c_crossattn": comfy.conds.CONDRegular(given["cross_attn"]),
            "latent_shapes": comfy.conds.CONDConstant(given["latent_shapes"]),
        }


class SoundingWanConfig(supported.WAN21_T2V):
    latent_format = comfy.latent_formats.HunyuanVideo  # scaled by one number, which a row of both parts can be

    def get_model(self, state_dict, prefix="", device=None):
        return SoundingWan(self, device)


@dataclasses.dataclass(frozen=True)
class SoundingFamily(Family):
    """A family whose latents have sound.

    Attributes:
        sound: shape of it.
        sound_path: where the last layer of the sound is.
        time: which dimension of its latents is time.
    """

    sound: tuple[int, ...] = ()
    sound_path: str = ""
    time: int = 2


WAN = dict(
    model_type="t2v", dim=32, ffn_dim=32, num_heads=2, num_layers=1, in_dim=16, out_dim=16, text_dim=16, freq_dim=32
)
SOUNDING = {
    "Wan with sound": SoundingFamily(
        SoundingWanConfig, WAN, "head.head", (2, 16, 2, 8, 8), (7, 16), sound=(2, 8, 9, BINS), sound_path="sound_out"
    )
}
if hasattr(supported, "LTXAV"):
    SOUNDING["LTX-2"] = SoundingFamily(
        supported.LTXAV,
        dict(
            in_channels=128, audio_in_channels=128, cross_attention_dim=32, audio_cross_attention_dim=32,
            attention_head_dim=16, audio_attention_head_dim=16, num_attention_heads=2, audio_num_attention_heads=2,
            caption_channels=16, num_layers=1, connector_attention_head_dim=16, connector_num_attention_heads=2,
            connector_num_layers=1, connector_num_learnable_registers=8,
        ),
        "proj_out", (2, 128, 2, 4, 4), (7, 32), {"frame_rate": 25}, 32,
        sound=(2, 8, 9, 16), sound_path="audio_proj_out",
    )  # fmt: skip
if hasattr(supported, "MiniMaxH3"):
    SOUNDING["MiniMax H3"] = SoundingFamily(
        supported.MiniMaxH3,
        dict(
            hidden_size=48, num_layers=1, token_refiner_num_layers=1, num_attention_heads=2, attention_head_dim=24,
            ffn_hidden_size=48, text_dim=16, timestep_input_dim=16, time_embed_hidden_size=32, time_embed_dim=32,
            rope_inv_freq_len=4,
        ),
        "final_layer.video_out", (1, 24, 2, 4, 4), (7, 16), downscale=16,
        sound=(1, 32, 2, 8), sound_path="final_layer.audio_out", time=3,
    )  # fmt: skip


def set_up_sounding(name: str) -> Setup:
    """A small model with what a sampling run of it takes; its latent is nested."""
    family = SOUNDING[name]
    latent = {"samples": NestedTensor([torch.zeros(family.latent), torch.zeros(family.sound)])}
    return Setup(family.build(), family.conditioning(1), family.conditioning(2), latent, family.path, family.downscale)
