"""What make_workflows.py puts into each shared workflow: note, thumbnail, and where its model files are."""

from __future__ import annotations

NOTES = {
    "quickstart": (
        "## BayesDiff quick start\n"
        "1. **KSampler (BayesDiff)** returns the stock KSampler's latent, bit for bit, plus a first map: how much the "
        "image was yet to change. It needs no fit and no extra call.\n"
        "2. **Uncertainty Viewer** shows each image with its map. Its least certain part is masked, and stock "
        "inpainting redraws it. **Move the slider** of the mask, or drop images with ✗, and press **Run** again: only "
        "the redrawing runs.\n"
        "3. **Next**, group 5: a **Laplace head**, fitted once per model, makes maps and scores truer, still at no "
        "extra call, and adds percentiles.\n"
        "4. **Try** another prompt in *Demo model*, or use your own checkpoint, prompts and VAE instead."
    ),
    "batch_filter": (
        "## Keep the most certain of a batch\n"
        "1. Eight images are sampled, each with a score: lower is more certain.\n"
        "2. **Filter by Uncertainty** splits images, latents and uncertainty into kept and dropped. The contact sheet "
        "shows all images by rank.\n"
        "3. **Uncertainty Viewer** shows the kept with their maps. Drop by eye what the score let through: click ✗, "
        "press **Run**, and only the rest goes on.\n"
        "4. **Try** another *rule*: mean + n deviations is the paper's. Connect masks or prompts to split them too."
    ),
    "see_and_choose": (
        "## See and choose\n"
        "1. Press **Run**. *Uncertainty Viewer* shows eight images with their maps, the surest first. The surest three "
        "go on by themselves.\n"
        "2. **Move the slider** of the mask, and click ✓ or ✗ to keep or drop images. Press **Run** again: nothing is "
        "sampled twice, only the chosen images are redrawn inside their masks.\n"
        "3. **Try** the percentile as threshold: less certain images get larger masks. Connect other images to "
        "*before* to compare."
    ),
    "best_of_n": (
        "## Best of N\n"
        "1. Sixteen seeds are sampled for half of their steps and ranked by how unsure the model is of the result.\n"
        "2. Only the four most certain are finished. The report counts the network calls that this saves.\n"
        "3. **Uncertainty without a Head** maps the best, at two calls each. **Uncertainty Viewer** shows them; the "
        "surest two go on until you choose.\n"
        "4. **Try** a smaller *share*, which saves more and ranks worse, or the quality *instant*, which ranks at no "
        "call."
    ),
    "mask_to_inpaint": (
        "## From the map to an inpainting mask\n"
        "1. **Hard mask**: images are encoded, redrawn inside the mask by the stock KSampler, and pasted back, so "
        "nothing else changes. This works with any image and mask.\n"
        "2. **Soft mask**: with *Differential Diffusion*, less certain parts are redrawn more.\n"
        "3. **Try** the mask's *area*, *threshold* and *grow*, and the *denoise* of the repairs."
    ),
    "repair_loop": (
        "## Repair, score again, keep the better\n"
        "1. **Repair** masks the least certain part of each image, redraws it and scores the result, in two rounds.\n"
        "2. A repaired image replaces the other only if the model is more certain of it. The report lists each round, "
        "and *candidates* returns all versions, the original first.\n"
        "3. **Try** more *rounds*, a larger *denoise*, or the *method* rectify, which changes less."
    ),
    "variations": (
        "## Variations of an image\n"
        "1. **Resample** goes back to a point of an image's sampling, draws from what the model finds possible there, "
        "and finishes again. It returns each image first, then its variations.\n"
        "2. With a mask, only the inside varies. Here it is the least certain part.\n"
        "3. **Try** *start_at*: early changes shapes, late only details. Try *strength*: 1 goes as far as the model is "
        "unsure, often hardly visible; here it is 4."
    ),
    "video": (
        "## A clip: where and when is the model unsure?\n"
        "1. A small video model draws two clips of 13 frames. **KSampler (BayesDiff)** returns the stock KSampler's "
        "latent, bit for bit, plus a map of every frame, at no extra call. The stock **Create Video** shows both.\n"
        "2. The least certain cells of all frames become a mask. The stock **KSampler** redraws them and leaves the "
        "rest.\n"
        "3. **Try** another *emoji* or *motion*. *Any emoji* and *any motion* vary with the seed and go wrong more "
        "often. Or redraw a span of frames: *first_frame* and *last_frame* of the mask."
    ),
    "fit_a_head": (
        "## Fit, save and load a Laplace head\n"
        "1. Fit once per model and save the head. Fit on the model's **own samples**, which needs no data, or on "
        "**images**: use *Load Image* instead of the images drawn here, or set *fit_on* to *folder*.\n"
        "2. Heads are saved in `models/laplace_heads`. After the first run, press R, select group 4 and press Ctrl+M: "
        "the loaded head gives the same scores.\n"
        "3. **Try** fewer *samples*, or another *structure*, and compare maps and scores."
    ),
    "sampler_custom_advanced": (
        "## Use your own noise, guider, sampler and sigmas\n"
        "1. **SamplerCustomAdvanced (BayesDiff)** takes the stock node's inputs and returns its latent, bit for bit.\n"
        "2. **Uncertainty Options** keeps the uncertainty at each of the sigmas, for the plot, and shows it in the "
        "preview. The map is measured in pixels.\n"
        "3. **Try** another guider or sampler, or another *estimator* in the options."
    ),
    "two_stage": (
        "## One schedule in two stages\n"
        "1. The first **KSampler Advanced (BayesDiff)** samples half of the steps and leaves the noise in. The second "
        "goes on from it, with the first one's *uncertainty* connected: then the map and the scores are those of the "
        "whole run, at no further network call.\n"
        "2. Group 4 leaves that connection out. The last stage alone knows only what it decides itself.\n"
        "3. **Try** another model in the second stage, with a head of its own or with none in both."
    ),
    "hires_fix": (
        "## Hires fix: enlarge and sample again\n"
        "1. A small image is enlarged as a latent and sampled again. The *uncertainty* of the small one goes along, so "
        "the map counts both stages.\n"
        "2. Group 3 enlarges in pixels instead: **Uncertainty to Latents** makes one batch of image and members, any "
        "nodes change all of them alike, and **Latents to Uncertainty** turns them back.\n"
        "3. **Try** an upscale model between *Decode* and *Encode*, or another *denoise*."
    ),
    "sdxl_refiner": (
        "## SDXL base and refiner\n"
        "1. Choose **your two checkpoints** and press Run: the base samples 20 of 25 steps, the refiner the rest. The "
        "map counts both stages.\n"
        "2. Without a Laplace head the map is a first look. Fit a head for each model to make it better, on what both "
        "sampled, with *from share* and *to share* at the share of the schedule where they meet.\n"
        "3. **Try** fewer steps of the refiner, and compare the maps."
    ),
    "wan22": (
        "## Wan 2.2: two experts, one map for every frame\n"
        "1. Choose **your files** in the four loaders and press Run: the expert of high noise samples ten steps, the "
        "expert of low noise the rest. The second clip shows where and when the model was unsure, over both; "
        "*Uncertainty Viewer* shows it frame by frame.\n"
        "2. Without a Laplace head the map is a first look. Fit a head for each expert to make it better, on what both "
        "sampled, with *from share* and *to share* at the share of the schedule where they meet.\n"
        "3. **Try** a smaller size first: the second clip costs no network call."
    ),
    "sd15": (
        "## SD 1.5: find where it is unsure, and repair it\n"
        "1. Choose **your checkpoint** in *Your checkpoint* and press Run: a head is fitted, four images are sampled "
        "with their uncertainty, and the least certain part of each is redrawn.\n"
        "2. Fitting takes longest. Next time, connect *Load the head* instead and mute group 2 (Ctrl+M).\n"
        "3. **Try** quality *draft* for speed, *precise* for a map with less noise."
    ),
    "sdxl": (
        "## SDXL: find where it is unsure, and repair it\n"
        "1. Choose **your checkpoint** in *Your checkpoint* and press Run: a head is fitted, two images are sampled "
        "with their uncertainty, and the least certain part of each is redrawn.\n"
        "2. Fitting takes longest. Next time, connect *Load the head* instead and mute group 2 (Ctrl+M).\n"
        "3. **Try** quality *draft* for speed, *precise* for a map with less noise."
    ),
    "flux": (
        "## Flux: find where it is unsure, and repair it\n"
        "1. Choose **your files** in the three loaders and press Run: a head is fitted at cfg 1, one image is "
        "sampled with its uncertainty, and its least certain part is redrawn.\n"
        "2. Fitting takes longest. Next time, connect *Load the head* instead and mute group 2 (Ctrl+M).\n"
        "3. **Try** quality *balanced* or *precise* for a map with less noise."
    ),
}

# Four images or one, as node and number in its batch; or a card if the graph cannot run without a model file.
THUMBNAILS: dict[str, list[tuple[str, int]] | dict] = {
    "quickstart": [("13", 0), ("15", 0), ("16", 0), ("17", 0)],
    "batch_filter": [("10", 0)],
    "see_and_choose": [("8", 0), ("8", 1), ("12", 0), ("12", 1)],
    "best_of_n": [("8", number) for number in range(4)],
    "mask_to_inpaint": [("6", 1), ("8", 1), ("17", 1), ("25", 1)],
    "repair_loop": [("12", 3), ("14", 4), ("12", 4), ("12", 5)],
    "variations": [("9", number) for number in range(4)],
    "video": [("12", 0)],
    "fit_a_head": [("8", 0), ("8", 1), ("17", 0), ("17", 1)],
    "sampler_custom_advanced": [("14", 0)],
    "two_stage": [("7", 0), ("9", 0), ("7", 1), ("9", 1)],
    "hires_fix": [("9", 0), ("10", 0), ("19", 1), ("20", 1)],
    "sdxl_refiner": {"title": "SDXL", "lines": ["base and refiner,", "needs your checkpoints"]},
    "wan22": {"title": "Wan 2.2", "lines": ["two experts,", "needs your models,", "text encoder and VAE"]},
    "sd15": {"title": "SD 1.5", "lines": ["needs your checkpoint"]},
    "sdxl": {"title": "SDXL", "lines": ["needs your checkpoint"]},
    "flux": {"title": "Flux", "lines": ["needs your model,", "text encoders and VAE"]},
}

# Named as in ComfyUI's own templates, so that the page can offer a missing file.
HUB = "https://huggingface.co"
MODELS = {
    "v1-5-pruned-emaonly-fp16.safetensors": {
        "url": f"{HUB}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors",
        "directory": "checkpoints",
    },
    "sd_xl_base_1.0.safetensors": {
        "url": f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
        "directory": "checkpoints",
    },
    "sd_xl_refiner_1.0.safetensors": {
        "url": f"{HUB}/stabilityai/stable-diffusion-xl-refiner-1.0/resolve/main/sd_xl_refiner_1.0.safetensors",
        "directory": "checkpoints",
    },
    **{
        file: {
            "url": f"{HUB}/Comfy-Org/{repository}/resolve/main/split_files/{folder}/{file}",
            "directory": folder,
        }
        for file, repository, folder in (
            (
                "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors",
                "Wan_2.2_ComfyUI_Repackaged",
                "diffusion_models",
            ),
            (
                "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors",
                "Wan_2.2_ComfyUI_Repackaged",
                "diffusion_models",
            ),
            ("umt5_xxl_fp8_e4m3fn_scaled.safetensors", "Wan_2.1_ComfyUI_repackaged", "text_encoders"),
            ("wan_2.1_vae.safetensors", "Wan_2.2_ComfyUI_Repackaged", "vae"),
        )
    },
    "flux1-dev.safetensors": {
        "url": f"{HUB}/Comfy-Org/flux1-dev/resolve/main/flux1-dev.safetensors",
        "directory": "diffusion_models",
    },
    "clip_l.safetensors": {
        "url": f"{HUB}/comfyanonymous/flux_text_encoders/resolve/main/clip_l.safetensors",
        "directory": "text_encoders",
    },
    "t5xxl_fp16.safetensors": {
        "url": f"{HUB}/comfyanonymous/flux_text_encoders/resolve/main/t5xxl_fp16.safetensors",
        "directory": "text_encoders",
    },
    "ae.safetensors": {
        "url": f"{HUB}/Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae/ae.safetensors",
        "directory": "vae",
    },
}
