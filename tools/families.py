"""Small instances, with random weights, of the model families that ComfyUI runs; built from the host's own classes."""

from __future__ import annotations

import dataclasses

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models as supported
import nodes
import torch
from bayesdiff.host.settings import Guidance
from comfy.ldm.chroma.model import ChromaParams
from comfy.ldm.flux.model import FluxParams
from comfy.ldm.hunyuan_video.model import HunyuanVideoParams
from factory import sampler_inputs


def known(params: type, **options) -> dict:
    """Those of the options that the host's class of parameters has."""
    return {name: value for name, value in options.items() if name in params.__dataclass_fields__}


UNET = dict(
    image_size=8, in_channels=4, out_channels=4, model_channels=32, channel_mult=[1, 2], num_res_blocks=[1, 1],
    transformer_depth=[0, 1], transformer_depth_output=[0, 0, 1, 1], transformer_depth_middle=1, num_heads=2,
    num_head_channels=-1, context_dim=16, use_spatial_transformer=True, use_linear_in_transformer=True, legacy=False,
)  # fmt: skip

# Options that newer hosts want and older ones refuse.
NEWER = {
    supported.Flux: known(FluxParams, txt_ids_dims=[]),
    supported.Chroma: known(ChromaParams, txt_ids_dims=[], vec_in_dim=None),
    supported.HunyuanVideo: known(HunyuanVideoParams, meanflow_sum=False),
}


@dataclasses.dataclass(frozen=True)
class Family:
    """How to build a small model of a family.

    Attributes:
        config: class of the host's that knows the family.
        options: arguments of its network.
        path: where its last layer is.
        latent: shape of a latent.
        context: length and width of the text conditioning.
        extras: what else the conditioning holds.
        downscale: pixels of an image per latent cell.
    """

    config: type
    options: dict
    path: str
    latent: tuple[int, ...]
    context: tuple[int, int]
    extras: dict = dataclasses.field(default_factory=dict)
    downscale: int = 8

    def build(self) -> comfy.model_patcher.ModelPatcher:
        options = self.options | NEWER.get(self.config, {})
        config = self.config(options)
        config.unet_config = options  # the class would add settings of the full-sized model
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({}, "", device=torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in sorted(model.diffusion_model.named_parameters()):
                noise = torch.randn(parameter.shape, generator=generator)
                is_gain = parameter.ndim == 1 and "bias" not in name
                parameter.copy_(1 + 0.1 * noise if is_gain else noise * max(parameter.shape[-1], 4) ** -0.5)
        device = comfy.model_management.get_torch_device()
        return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))

    def conditioning(self, seed: int) -> list:
        generator = torch.Generator().manual_seed(seed)
        return [[torch.randn(1, *self.context, generator=generator), dict(self.extras)]]


pooled = {"pooled_output": torch.full((1, 16), 0.3)}

FLUX = dict(
    in_channels=16, out_channels=16, patch_size=2, vec_in_dim=16, context_in_dim=16, hidden_size=32, mlp_ratio=2.0,
    num_heads=2, depth=1, depth_single_blocks=1, axes_dim=[4, 6, 6], theta=10000, qkv_bias=True, guidance_embed=True,
)  # fmt: skip

FAMILIES = {
    "SD1": Family(supported.SD15, UNET, "out.2", (2, 4, 8, 8), (7, 16)),
    "SD2": Family(supported.SD20, UNET, "out.2", (2, 4, 8, 8), (7, 16)),
    "SDXL": Family(
        supported.SDXL, UNET | dict(num_classes="sequential", adm_in_channels=16 + 6 * 256), "out.2", (2, 4, 8, 8),
        (7, 16), pooled,
    ),
    "SD3": Family(
        supported.SD3,
        dict(
            input_size=None, patch_size=2, in_channels=16, depth=2, pos_embed_max_size=16, num_patches=256,
            adm_in_channels=16, context_embedder_config={"target": "torch.nn.Linear", "params": {
                "in_features": 16, "out_features": 128}}, pos_embed_scaling_factor=None,
        ),
        "final_layer.linear", (2, 16, 8, 8), (7, 16), pooled,
    ),
    "AuraFlow": Family(
        supported.AuraFlow, dict(dim=32, n_layers=2, n_double_layers=1, n_heads=2, global_conddim=32, cond_seq_dim=16,
                                 max_seq=256),
        "final_linear", (2, 4, 8, 8), (7, 16),
    ),
    "PixArt": Family(
        supported.PixArtSigma, dict(input_size=64, hidden_size=32, depth=1, num_heads=2, caption_channels=16,
                                    model_max_length=7, micro_condition=False),
        # Smaller images round its position scale to zero.
        "final_layer.linear", (2, 4, 48, 48), (7, 16),
    ),
    "Flux": Family(supported.Flux, FLUX, "final_layer.linear", (2, 16, 8, 8), (7, 16), pooled),
    "Chroma": Family(
        supported.Chroma,
        dict(in_channels=64, out_channels=64, context_in_dim=16, hidden_size=32, mlp_ratio=2.0, num_heads=2, depth=1,
             depth_single_blocks=1, axes_dim=[4, 6, 6], theta=10000, patch_size=2, qkv_bias=True, in_dim=64,
             out_dim=32, hidden_dim=32, n_layers=1),
        "final_layer.linear", (2, 16, 8, 8), (7, 16), pooled,
    ),
    "Lumina 2": Family(
        supported.Lumina2, dict(patch_size=2, in_channels=16, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2,
                                n_kv_heads=2, multiple_of=8, qk_norm=True, cap_feat_dim=16, axes_dims=[4, 6, 6],
                                axes_lens=[64, 64, 64]),
        "final_layer.linear", (2, 16, 8, 8), (7, 16),
    ),
    "Qwen-Image": Family(
        supported.QwenImage, dict(patch_size=2, in_channels=64, out_channels=16, num_layers=1, attention_head_dim=16,
                                  num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16,
                                  axes_dims_rope=(4, 6, 6)),
        "proj_out", (2, 16, 1, 8, 8), (7, 16),
    ),
    "Wan": Family(
        supported.WAN21_T2V, dict(model_type="t2v", dim=32, ffn_dim=32, num_heads=2, num_layers=1, in_dim=16,
                                  out_dim=16, text_dim=16, freq_dim=32),
        "head.head", (1, 16, 2, 8, 8), (7, 16),
    ),
    "Cosmos Predict 2": Family(
        supported.CosmosT2IPredict2,
        dict(max_img_h=16, max_img_w=16, max_frames=4, in_channels=16, out_channels=16, patch_spatial=2,
             patch_temporal=1, concat_padding_mask=True, model_channels=64, num_blocks=1, num_heads=2,
             crossattn_emb_channels=16, pos_emb_cls="rope3d", use_adaln_lora=True, adaln_lora_dim=16),
        "final_layer.linear", (1, 16, 1, 8, 8), (7, 16),
    ),
    "Cosmos": Family(
        supported.CosmosT2V,
        dict(max_img_h=16, max_img_w=16, max_frames=16, in_channels=16, out_channels=16, patch_spatial=2,
             patch_temporal=1, concat_padding_mask=True, model_channels=64, num_blocks=1, num_heads=2,
             crossattn_emb_channels=16, pos_emb_cls="rope3d", block_x_format="THWBD", affline_emb_norm=True,
             use_adaln_lora=True, adaln_lora_dim=16, extra_per_block_abs_pos_emb=True,
             extra_per_block_abs_pos_emb_type="learnable"),
        "final_layer.linear", (1, 16, 2, 8, 8), (7, 16),
    ),
    "Mochi": Family(
        supported.GenmoMochi,
        dict(patch_size=2, in_channels=12, hidden_size_x=48, hidden_size_y=32, depth=2, num_heads=2, mlp_ratio_x=256.0,
             mlp_ratio_y=2.0, learn_sigma=False, qk_norm=True, qkv_bias=False, out_bias=True, attn_drop=0.0,
             patch_embed_bias=True, posenc_preserve_area=True, timestep_mlp_bias=True, attend_to_padding=False,
             timestep_scale=1000.0, use_t5=True, t5_feat_dim=16, t5_token_length=7),
        "final_layer.linear", (1, 12, 2, 8, 8), (7, 16), {"attention_mask": torch.ones(1, 7, dtype=torch.long)},
    ),
    "Hunyuan-Video": Family(
        supported.HunyuanVideo,
        dict(in_channels=16, out_channels=16, patch_size=[1, 2, 2], vec_in_dim=16, context_in_dim=16, hidden_size=32,
             mlp_ratio=2.0, num_heads=2, depth=1, depth_single_blocks=1, axes_dim=[4, 6, 6], theta=256, qkv_bias=True,
             guidance_embed=True, byt5=False, meanflow=False, use_cond_type_embedding=False, vision_in_dim=None),
        "final_layer.linear", (1, 16, 2, 8, 8), (7, 16), pooled,
    ),
    "LTXV": Family(
        supported.LTXV, dict(in_channels=128, cross_attention_dim=32, attention_head_dim=16, num_attention_heads=2,
                             caption_channels=16, num_layers=1),
        "proj_out", (1, 128, 2, 4, 4), (7, 16), {"attention_mask": torch.ones(1, 7, dtype=torch.long)}, 32,
    ),
    "Hunyuan-DiT": Family(
        supported.HunyuanDiT, dict(input_size=8, hidden_size=64, depth=2, num_heads=2, text_states_dim=16,
                                   text_states_dim_t5=16, text_len=7, text_len_t5=5),
        "final_layer.linear", (2, 4, 8, 8), (7, 16),
        {"attention_mask": torch.ones(1, 7), "conditioning_mt5xl": torch.full((1, 5, 16), 0.2),
         "attention_mask_mt5xl": torch.ones(1, 5)},
    ),
    "Stable Cascade C": Family(
        supported.Stable_Cascade_C,
        dict(c_cond=32, c_hidden=[32, 32], nhead=[2, 2], blocks=[[1, 1], [1, 1]], c_clip_text=16,
             c_clip_text_pooled=16, c_clip_img=768),
        "clf.1", (2, 16, 8, 8), (7, 16), pooled, 42,
    ),
}  # fmt: skip

STEPS, CFG = 3, 3.0


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
    family = FAMILIES[name]
    latent = {"samples": torch.zeros(family.latent)}
    return Setup(family.build(), family.conditioning(1), family.conditioning(2), latent, family.path, family.downscale)
