"""The families of images that the host knows, each as small as it can be; see :class:`family.Family`."""

from __future__ import annotations

import torch
from comfy.ldm.chroma.model import ChromaParams
from comfy.ldm.chroma_radiance.model import ChromaRadianceParams
from comfy.ldm.flux.model import FluxParams
from comfy.ldm.hunyuan_video.model import HunyuanVideoParams
from family import Family

TEXT_MASK = {"attention_mask": torch.ones(1, 7, dtype=torch.long)}
POOLED = {"pooled_output": torch.full((1, 16), 0.3)}

UNET = dict(
    image_size=8, in_channels=4, out_channels=4, model_channels=32, channel_mult=[1, 2], num_res_blocks=[1, 1],
    transformer_depth=[0, 1], transformer_depth_output=[0, 0, 1, 1], transformer_depth_middle=1, num_heads=2,
    num_head_channels=-1, context_dim=16, use_spatial_transformer=True, use_linear_in_transformer=True, legacy=False,
)  # fmt: skip
XL = UNET | dict(num_classes="sequential", adm_in_channels=16 + 6 * 256)
UNCLIP = UNET | dict(num_classes="sequential", adm_in_channels=16)

FLUX = dict(
    in_channels=16, out_channels=16, patch_size=2, vec_in_dim=16, context_in_dim=16, hidden_size=32, mlp_ratio=2.0,
    num_heads=2, depth=1, depth_single_blocks=1, axes_dim=[4, 6, 6], theta=10000, qkv_bias=True, guidance_embed=True,
)  # fmt: skip
CHROMA = dict(
    in_channels=64, out_channels=64, context_in_dim=16, hidden_size=32, mlp_ratio=2.0, num_heads=2, depth=1,
    depth_single_blocks=1, axes_dim=[4, 6, 6], theta=10000, patch_size=2, qkv_bias=True, in_dim=64, out_dim=32,
    hidden_dim=32, n_layers=1,
)  # fmt: skip
RADIANCE = CHROMA | dict(
    in_channels=3, out_channels=3, patch_size=4, nerf_hidden_size=16, nerf_mlp_ratio=2, nerf_depth=1, nerf_max_freqs=4,
    nerf_tile_size=0, nerf_final_head_type="conv", nerf_embedder_dtype=None, use_x0=False,
)  # fmt: skip
LUMINA = dict(
    patch_size=2, in_channels=16, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, multiple_of=8,
    qk_norm=True, cap_feat_dim=16, axes_dims=[4, 6, 6], axes_lens=[64, 64, 64],
)  # fmt: skip
# A network of 256 channels at least, whose timestep is that wide.
Z_IMAGE = LUMINA | dict(
    dim=256, z_image_modulation=True, time_scale=1000.0, pad_tokens_multiple=32, axes_dims=[32, 48, 48],
)  # fmt: skip
PIXELS = dict(
    in_channels=3, num_groups=2, hidden_size=32, pixel_hidden_size=16, pixel_attn_hidden_size=32, pixel_num_groups=2,
    patch_depth=1, pixel_depth=1, patch_size=8, txt_embed_dim=16, txt_max_length=16,
)  # fmt: skip
HUNYUAN = dict(
    in_channels=64, out_channels=64, patch_size=[1, 1], vec_in_dim=None, context_in_dim=16, hidden_size=32,
    mlp_ratio=2.0, num_heads=2, depth=1, depth_single_blocks=1, axes_dim=[8, 8], theta=256, qkv_bias=True,
    guidance_embed=False, byt5=False, meanflow=False, use_cond_type_embedding=False, vision_in_dim=None,
)  # fmt: skip
HYDIT = dict(
    input_size=8, hidden_size=64, depth=2, num_heads=2, text_states_dim=16, text_states_dim_t5=16, text_len=7,
    text_len_t5=5,
)  # fmt: skip
T5 = {
    "attention_mask": torch.ones(1, 7),
    "conditioning_mt5xl": torch.full((1, 5, 16), 0.2),
    "attention_mask_mt5xl": torch.ones(1, 5),
}
PIXART = dict(
    input_size=64, hidden_size=32, depth=1, num_heads=2, caption_channels=16, model_max_length=7, micro_condition=False
)
COSMOS_2 = dict(
    max_img_h=16, max_img_w=16, max_frames=4, in_channels=16, out_channels=16, patch_spatial=2, patch_temporal=1,
    concat_padding_mask=True, model_channels=64, num_blocks=1, num_heads=2, crossattn_emb_channels=16,
    pos_emb_cls="rope3d", use_adaln_lora=True, adaln_lora_dim=16,
)  # fmt: skip
OMNIGEN = dict(
    patch_size=2, in_channels=16, hidden_size=32, num_layers=1, num_refiner_layers=1, num_attention_heads=2,
    num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 6, 6), axes_lens=(64, 64, 64),
)  # fmt: skip
CASCADE_B = dict(
    c_hidden=[32, 32, 32, 32], nhead=[-1, -1, 2, 2], blocks=[[1, 1, 1, 1], [1, 1, 1, 1]],
    block_repeat=[[1, 1, 1, 1], [1, 1, 1, 1]], c_cond=32, c_clip=16,
)  # fmt: skip
HIDREAM_O1 = dict(
    text_config_overrides=dict(
        hidden_size=64, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, rope_dims=[4, 2, 2],
    ),
    vision_config_overrides=dict(
        hidden_size=32, num_heads=2, intermediate_size=32, depth=1, deepstack_visual_indexes=[],
    ),
)  # fmt: skip

LINEAR = "final_layer.linear"
UNET_END, SMALL, SMALL_16 = "out.2", (2, 4, 8, 8), (2, 16, 8, 8)

IMAGES = {
    "SD1": Family("SD15", UNET, UNET_END, SMALL),
    "SD2": Family("SD20", UNET, UNET_END, SMALL),
    "SDXL": Family("SDXL", XL, UNET_END, SMALL, extras=POOLED),
    "SD3": Family(
        "SD3",
        dict(
            input_size=None, patch_size=2, in_channels=16, depth=2, pos_embed_max_size=16, num_patches=256,
            adm_in_channels=16, context_embedder_config={"target": "torch.nn.Linear", "params": {
                "in_features": 16, "out_features": 128}}, pos_embed_scaling_factor=None,
        ),
        LINEAR, SMALL_16, extras=POOLED,
    ),
    "AuraFlow": Family(
        "AuraFlow", dict(dim=32, n_layers=2, n_double_layers=1, n_heads=2, global_conddim=32, cond_seq_dim=16,
                         max_seq=256),
        "final_linear", SMALL,
    ),
    # Smaller images round its position scale to zero.
    "PixArt": Family("PixArtSigma", PIXART, LINEAR, (2, 4, 48, 48)),
    "Flux": Family("Flux", FLUX, LINEAR, SMALL_16, extras=POOLED, params=FluxParams),
    "Chroma": Family("Chroma", CHROMA, LINEAR, SMALL_16, extras=POOLED, params=ChromaParams),
    "Lumina 2": Family("Lumina2", LUMINA, LINEAR, SMALL_16),
    "Qwen-Image": Family(
        "QwenImage", dict(patch_size=2, in_channels=64, out_channels=16, num_layers=1, attention_head_dim=16,
                          num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16,
                          axes_dims_rope=(4, 6, 6)),
        "proj_out", (2, 16, 1, 8, 8),
    ),
    "Cosmos Predict 2": Family("CosmosT2IPredict2", COSMOS_2, LINEAR, (1, 16, 1, 8, 8)),
    "Hunyuan-DiT": Family("HunyuanDiT", HYDIT, LINEAR, SMALL, extras=T5),
    "Stable Cascade C": Family(
        "Stable_Cascade_C",
        dict(c_cond=32, c_hidden=[32, 32], nhead=[2, 2], blocks=[[1, 1], [1, 1]], c_clip_text=16,
             c_clip_text_pooled=16, c_clip_img=768),
        "clf.1", SMALL_16, extras=POOLED, downscale=42,
    ),
}  # fmt: skip

# Families that differ little from one above, and those of newer hosts.
MORE_IMAGES = {
    # As wide as the one prompt that the host has for it.
    "Lotus-D": Family(
        "LotusD", UNET | dict(num_classes="sequential", adm_in_channels=4, context_dim=1024), UNET_END, SMALL,
        context=(7, 1024),
    ),
    "Zero123": Family(
        "Stable_Zero123", UNET | dict(in_channels=8, context_dim=768), UNET_END, SMALL, context=(1, 768),
        weights={"cc_projection.weight": torch.eye(768, 772), "cc_projection.bias": torch.zeros(768)},
    ),
    "SD1 InstructPix2Pix": Family("SD15_instructpix2pix", UNET | dict(in_channels=8), UNET_END, SMALL),
    "SD 2.1 unCLIP L": Family("SD21UnclipL", UNCLIP, UNET_END, SMALL),
    "SD 2.1 unCLIP H": Family("SD21UnclipH", UNCLIP, UNET_END, SMALL),
    "SDXL InstructPix2Pix": Family("SDXL_instructpix2pix", XL | dict(in_channels=8), UNET_END, SMALL, extras=POOLED),
    "SDXL refiner": Family(
        "SDXLRefiner", XL | dict(adm_in_channels=16 + 5 * 256), UNET_END, SMALL, extras=POOLED
    ),
    "SSD-1B": Family("SSD1B", XL, UNET_END, SMALL, extras=POOLED),
    "KOALA 700M": Family("KOALA_700M", XL, UNET_END, SMALL, extras=POOLED),
    "KOALA 1B": Family("KOALA_1B", XL, UNET_END, SMALL, extras=POOLED),
    "Segmind Vega": Family("Segmind_Vega", XL, UNET_END, SMALL, extras=POOLED),
    "SD x4 upscaler": Family(
        "SD_X4Upscaler", UNET | dict(in_channels=7, num_classes=1000), UNET_END, SMALL, downscale=4
    ),
    "Stable Cascade B": Family("Stable_Cascade_B", CASCADE_B, "clf.1", (2, 4, 16, 16), extras=POOLED, downscale=4),
    "PixArt alpha": Family("PixArtAlpha", PIXART | dict(hidden_size=48, micro_condition=True), LINEAR, (2, 4, 48, 48)),
    "Hunyuan-DiT 1.1": Family(
        "HunyuanDiT1", HYDIT | dict(size_cond=True, use_style_cond=True), LINEAR, SMALL, extras=T5
    ),
    "Flux Fill": Family(
        "FluxInpaint", FLUX | dict(in_channels=96), LINEAR, SMALL_16, extras=POOLED, params=FluxParams
    ),
    "Flux schnell": Family(
        "FluxSchnell", FLUX | dict(guidance_embed=False), LINEAR, SMALL_16, extras=POOLED, params=FluxParams
    ),
    "LongCat-Image": Family(
        "LongCatImage", FLUX | dict(guidance_embed=False, vec_in_dim=None, txt_ids_dims=[1, 2]), LINEAR, SMALL_16,
        params=FluxParams,
    ),
    "Flux 2": Family(
        "Flux2",
        FLUX | dict(in_channels=128, out_channels=128, patch_size=1, vec_in_dim=None, axes_dim=[4, 4, 4, 4],
                    theta=2000, qkv_bias=False, global_modulation=True, mlp_silu_act=True, ops_bias=False,
                    txt_ids_dims=[3], default_ref_method="index", ref_index_scale=10.0),
        LINEAR, (2, 128, 4, 4), extras={"pooled_output": None}, downscale=16, params=FluxParams,
    ),
    "Hunyuan-Image 2.1": Family(
        "HunyuanImage21", HUNYUAN, LINEAR, (2, 64, 4, 4), downscale=32, params=HunyuanVideoParams
    ),
    "Hunyuan-Image 2.1 refiner": Family(
        "HunyuanImage21Refiner", HUNYUAN | dict(in_channels=128, patch_size=[1, 1, 1], axes_dim=[4, 6, 6]), LINEAR,
        (1, 32, 1, 4, 4), downscale=16, params=HunyuanVideoParams,
    ),
    "Z-Image": Family("ZImage", Z_IMAGE, LINEAR, SMALL_16),
    "Z-Image of pixels": Family(
        "ZImagePixelSpace",
        Z_IMAGE | dict(in_channels=3, patch_size=4, decoder_hidden_size=16, decoder_num_res_blocks=1,
                       decoder_max_freqs=4),
        "dec_net.final_layer.linear", (2, 3, 16, 16), downscale=1,
    ),
    "PiD": Family(
        "PiD", PIXELS | dict(lq_hidden_dim=16, lq_num_res_blocks=1), LINEAR, (2, 3, 32, 32), downscale=1,
        extras={"lq_latent": torch.full((1, 16, 1, 1), 0.3), "degrade_sigma": torch.zeros(1)},
    ),
    "PixelDiT": Family("PixelDiTT2I", PIXELS, LINEAR, (2, 3, 32, 32), downscale=1),
    "HiDream": Family(
        "HiDream",
        dict(patch_size=2, in_channels=16, out_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
             num_attention_heads=2, caption_channels=[16, 16], text_emb_dim=16, axes_dims_rope=(4, 6, 6),
             max_resolution=(16, 16), llama_layers=[0, 0]),
        LINEAR, SMALL_16,
        extras=POOLED | {"conditioning_llama3": torch.full((1, 1, 5, 16), 0.2)},
    ),
    "HiDream-O1": Family(
        "HiDreamO1", HIDREAM_O1, "final_layer2.linear", (2, 3, 64, 64), downscale=1,
        extras={"text_input_ids": torch.arange(10, 20)[None]},
    ),
    "Chroma Radiance": Family(
        "ChromaRadiance", RADIANCE, "nerf_final_layer_conv.conv", (2, 3, 16, 16), extras=POOLED, downscale=1,
        params=ChromaRadianceParams,
    ),
    "OmniGen 2": Family("Omnigen2", OMNIGEN | dict(text_feat_dim=16), "norm_out.linear_2", SMALL_16, extras=TEXT_MASK),
    "Boogu": Family(
        "Boogu", OMNIGEN | dict(num_double_stream_layers=1, instruction_feat_dim=16), "norm_out.linear_2", SMALL_16,
        extras=TEXT_MASK,
    ),
    "Mage-Flow": Family(
        "MageFlow", dict(num_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16,
                         axes_dims_rope=(4, 6, 6)),
        "proj_out", (2, 128, 4, 4), downscale=16,
    ),
    "Ideogram 4": Family(
        "Ideogram4", dict(num_layers=1, num_attention_heads=2, attention_head_dim=16, intermediate_size=32,
                          adaln_dim=16, llm_features_dim=16, mrope_section=(4, 2, 2)),
        LINEAR, (2, 128, 4, 4), downscale=16,
    ),
    "Krea 2": Family(
        "Krea2", dict(features=32, tdim=32, txtdim=16, heads=2, kvheads=1, layers=1, txtlayers=2, txtheads=2,
                      txtkvheads=2),
        "last.linear", (2, 16, 1, 8, 8), context=(7, 32),
    ),
    "Lens": Family(
        "Lens", dict(num_layers=1, attention_head_dim=16, num_attention_heads=2, enc_hidden_dim=16,
                     axes_dims_rope=(4, 6, 6), selected_layer_index=(1, 2)),
        "proj_out", (2, 128, 4, 4), context=(7, 32), downscale=16,
    ),
    "Kandinsky 5 of images": Family(
        "Kandinsky5Image",
        dict(in_text_dim=16, in_text_dim2=16, time_dim=16, model_dim=32, ff_dim=32, visual_embed_dim=64,
             num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 6, 6)),
        "out_layer.out_layer", SMALL_16, extras=POOLED,
    ),
    "Anima": Family("Anima", COSMOS_2, LINEAR, (1, 16, 1, 8, 8)),
    "ERNIE-Image": Family(
        "ErnieImage", dict(hidden_size=32, num_attention_heads=2, num_layers=1, ffn_hidden_size=32, text_in_dim=16,
                           rope_axes_dim=(4, 6, 6)),
        "final_linear", (2, 128, 4, 4), downscale=16,
    ),
    "JoyImage": Family(
        "JoyImage", dict(hidden_size=32, num_attention_heads=2, text_dim=16, num_layers=1, rope_dim_list=[4, 6, 6]),
        "proj_out", (2, 16, 1, 8, 8),
    ),
}  # fmt: skip
