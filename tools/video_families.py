"""The families of video that the host knows, each as small as it can be; see :class:`family.Family`."""

from __future__ import annotations

import torch
from comfy.ldm.hunyuan_video.model import HunyuanVideoParams
from family import Family
from image_families import COSMOS_2, LINEAR, POOLED, TEXT_MASK, UNET, UNET_END

WAN = dict(
    model_type="t2v", dim=32, ffn_dim=32, num_heads=2, num_layers=1, in_dim=16, out_dim=16, text_dim=16, freq_dim=32
)
WAN_END, CLIP = "head.head", (1, 16, 2, 8, 8)
HUNYUAN = dict(
    in_channels=16, out_channels=16, patch_size=[1, 2, 2], vec_in_dim=16, context_in_dim=16, hidden_size=32,
    mlp_ratio=2.0, num_heads=2, depth=1, depth_single_blocks=1, axes_dim=[4, 6, 6], theta=256, qkv_bias=True,
    guidance_embed=True, byt5=False, meanflow=False, use_cond_type_embedding=False, vision_in_dim=None,
)  # fmt: skip
HUNYUAN_15 = HUNYUAN | dict(
    in_channels=65, out_channels=32, patch_size=[1, 1, 1], vec_in_dim=None, guidance_embed=False,
    use_cond_type_embedding=True, vision_in_dim=1152,
)  # fmt: skip
COSMOS = dict(
    max_img_h=16, max_img_w=16, max_frames=16, in_channels=16, out_channels=16, patch_spatial=2, patch_temporal=1,
    concat_padding_mask=True, model_channels=64, num_blocks=1, num_heads=2, crossattn_emb_channels=16,
    pos_emb_cls="rope3d", block_x_format="THWBD", affline_emb_norm=True, use_adaln_lora=True, adaln_lora_dim=16,
    extra_per_block_abs_pos_emb=True, extra_per_block_abs_pos_emb_type="learnable",
)  # fmt: skip
SVD = UNET | dict(
    in_channels=8, num_classes="sequential", extra_ff_mix_layer=True, use_spatial_context=True,
    merge_strategy="learned_with_images", video_kernel_size=[3, 1, 1], use_temporal_resblock=True,
    use_temporal_attention=True,
)  # fmt: skip
COGVIDEO = dict(num_attention_heads=2, attention_head_dim=16, time_embed_dim=16, text_embed_dim=16, num_layers=1,
                use_rotary_positional_embeddings=True)  # fmt: skip

VIDEOS = {
    "Wan": Family("WAN21_T2V", WAN, WAN_END, CLIP),
    "Cosmos": Family("CosmosT2V", COSMOS, LINEAR, CLIP),
    "Mochi": Family(
        "GenmoMochi",
        dict(patch_size=2, in_channels=12, hidden_size_x=48, hidden_size_y=32, depth=2, num_heads=2, mlp_ratio_x=256.0,
             mlp_ratio_y=2.0, learn_sigma=False, qk_norm=True, qkv_bias=False, out_bias=True, attn_drop=0.0,
             patch_embed_bias=True, posenc_preserve_area=True, timestep_mlp_bias=True, attend_to_padding=False,
             timestep_scale=1000.0, use_t5=True, t5_feat_dim=16, t5_token_length=7),
        LINEAR, (1, 12, 2, 8, 8), extras=TEXT_MASK,
    ),
    "Hunyuan-Video": Family("HunyuanVideo", HUNYUAN, LINEAR, CLIP, extras=POOLED, params=HunyuanVideoParams),
    "LTXV": Family(
        "LTXV", dict(in_channels=128, cross_attention_dim=32, attention_head_dim=16, num_attention_heads=2,
                     caption_channels=16, num_layers=1),
        "proj_out", (1, 128, 2, 4, 4), extras=TEXT_MASK, downscale=32,
    ),
}  # fmt: skip

# Families that differ little from one above, and those of newer hosts.
MORE_VIDEOS = {
    "Stable Video Diffusion": Family("SVD_img2vid", SVD | dict(adm_in_channels=768), UNET_END, (2, 4, 8, 8)),
    "SV3D u": Family("SV3D_u", SVD | dict(adm_in_channels=256), UNET_END, (2, 4, 8, 8)),
    "SV3D p": Family("SV3D_p", SVD | dict(adm_in_channels=1280), UNET_END, (2, 4, 8, 8)),
    "Hunyuan-Video image": Family(
        "HunyuanVideoI2V", HUNYUAN | dict(in_channels=33), LINEAR, CLIP, extras=POOLED, params=HunyuanVideoParams
    ),
    "SkyReels image": Family(
        "HunyuanVideoSkyreelsI2V", HUNYUAN | dict(in_channels=32), LINEAR, CLIP, extras=POOLED,
        params=HunyuanVideoParams,
    ),
    "Hunyuan-Video 1.5": Family(
        "HunyuanVideo15", HUNYUAN_15, LINEAR, (1, 32, 2, 4, 4), extras=POOLED, downscale=16, params=HunyuanVideoParams
    ),
    "Hunyuan-Video 1.5 upscaler": Family(
        "HunyuanVideo15_SR_Distilled", HUNYUAN_15 | dict(in_channels=98, meanflow=True), LINEAR, (1, 32, 2, 4, 4),
        extras=POOLED, downscale=16, params=HunyuanVideoParams,
    ),
    "Cosmos image": Family("CosmosI2V", COSMOS | dict(in_channels=17), LINEAR, CLIP),
    "Cosmos Predict 2 image": Family("CosmosI2VPredict2", COSMOS_2 | dict(in_channels=17), LINEAR, CLIP),
    "Wan 2.2 5B": Family(
        "WAN22_T2V", WAN | dict(in_dim=48, out_dim=48), WAN_END, (1, 48, 2, 8, 8), downscale=16
    ),
    "Wan causal": Family("WAN21_CausalAR_T2V", WAN, WAN_END, CLIP),
    "Wan image": Family("WAN21_I2V", WAN | dict(model_type="i2v", in_dim=36), WAN_END, CLIP),
    "Wan Fun control": Family("WAN21_FunControl2V", WAN | dict(model_type="i2v", in_dim=48), WAN_END, CLIP),
    "Wan VACE": Family(
        "WAN21_Vace", WAN | dict(model_type="vace", vace_layers=1, vace_in_dim=96), WAN_END, CLIP
    ),
    "Wan camera": Family("WAN21_Camera", WAN | dict(model_type="camera", in_dim=32), WAN_END, CLIP),
    "Wan 2.2 camera": Family("WAN22_Camera", WAN | dict(model_type="camera_2.2", in_dim=36), WAN_END, CLIP),
    "Wan sound": Family(
        "WAN22_S2V", WAN | dict(model_type="s2v", audio_dim=16, audio_inject_layers=[0]), WAN_END, CLIP
    ),
    "Wan HuMo": Family("WAN21_HuMo", WAN | dict(model_type="humo"), WAN_END, CLIP),
    "Wan animate": Family("WAN22_Animate", WAN | dict(model_type="animate", in_dim=36, num_layers=5), WAN_END, CLIP),
    "Wan animate 2": Family("WAN_Animate2", WAN | dict(model_type="animate2", in_dim=36), WAN_END, CLIP),
    "Wan FlowRVS": Family("WAN21_FlowRVS", WAN, WAN_END, CLIP),
    "Wan SCAIL": Family("WAN21_SCAIL", WAN | dict(model_type="scail", in_dim=20), WAN_END, CLIP),
    "Wan SCAIL 2": Family("WAN21_SCAIL2", WAN | dict(model_type="scail2", in_dim=20), WAN_END, CLIP),
    "Wan dancer": Family(
        "WAN22_WanDancer",
        WAN | dict(model_type="wandancer", in_dim=36, music_dim=32, music_heads=2, music_latent_dim=32,
                   audio_inject_layers=[0]),
        WAN_END, CLIP,
    ),
    # Under guidance it answers the prompts in another order than it was asked.
    "SeedVR 2": Family(
        "SeedVR2",
        dict(vid_dim=32, heads=2, head_dim=16, num_layers=2, mm_layers=1, norm_eps=1e-5, mlp_type="swiglu",
             rope_dim=16, vid_out_norm=True, expand_ratio=2),
        "vid_out.proj", CLIP, context=(7, 5120), cfg=1.0,
        extras={"condition": torch.full((1, 17, 2, 8, 8), 0.3)},
    ),
    "Kandinsky 5": Family(
        "Kandinsky5",
        dict(in_text_dim=16, in_text_dim2=16, time_dim=16, model_dim=32, ff_dim=32, num_text_blocks=1,
             num_visual_blocks=1, axes_dims=(4, 6, 6)),
        "out_layer.out_layer", CLIP, extras=POOLED,
    ),
    "CogVideoX": Family("CogVideoX_T2V", COGVIDEO, "proj_out", CLIP),
    "CogVideoX image": Family("CogVideoX_I2V", COGVIDEO | dict(in_channels=32), "proj_out", CLIP),
    "CogVideoX inpaint": Family("CogVideoX_Inpaint", COGVIDEO | dict(in_channels=48), "proj_out", CLIP),
}  # fmt: skip
