"""What make_workflows.py says and shows of each shared workflow: note, thumbnail, and where its model files are."""

from __future__ import annotations

NOTES = {
    "quickstart": (
        "## BayesDiff quick start\n"
        "1. A small **demo model** draws four emoji, and a **Laplace head** learns how unsure its last layer is.\n"
        "2. **KSampler (BayesDiff)** returns the stock KSampler's latent and how unsure the model is of each part; the "
        "least certain part becomes a **mask**, and stock inpainting draws it again.\n"
        "3. **Try** another prompt in *Demo model*, or put your own checkpoint, prompts and VAE in its place."
    ),
    "batch_filter": (
        "## Keep the surest of a batch\n"
        "1. Eight pictures are sampled, each with a score: lower is surer.\n"
        "2. **Filter by Uncertainty** parts pictures, latents and uncertainty alike into kept and dropped; the contact "
        "sheet shows all by rank.\n"
        "3. **Try** another *rule*: mean + n deviations is the paper's. Connect masks or prompts to part them too."
    ),
    "best_of_n": (
        "## Best of N\n"
        "1. Sixteen seeds are sampled for half of their steps and ranked by what they would become.\n"
        "2. Only the surest four are sampled to the end; the report counts the network calls that this saves.\n"
        "3. **Try** a smaller *share*, which saves more and ranks worse, or no *score_finished*, if no map is wanted."
    ),
    "mask_to_inpaint": (
        "## From the map to an inpainting mask\n"
        "1. **Hard mask**: pictures are encoded, redrawn inside the mask by the stock KSampler, and pasted back, so "
        "that nothing else changes. Takes any picture and mask.\n"
        "2. **Soft mask**: with *Differential Diffusion* the less certain parts are redrawn more.\n"
        "3. **Try** the mask's *area*, *threshold* and *grow*, and the *denoise* of the repairs."
    ),
    "repair_loop": (
        "## Mend, score again, keep the better\n"
        "1. **Repair** masks the least certain part of each picture, redraws it and scores the result, in two rounds.\n"
        "2. A mended picture takes the place of the other only if the model is surer of it; the report says what each "
        "round did, and all candidates come out, the original first.\n"
        "3. **Try** more *rounds*, a larger *denoise*, or the *method* rectify, which changes less."
    ),
    "variations": (
        "## Variations of a picture\n"
        "1. **Resample** goes back to a point of a picture's sampling, draws there from what the model holds possible, "
        "and finishes again: each picture comes out first, then its variations.\n"
        "2. With a mask only the inside varies; here it is the least certain part.\n"
        "3. **Try** *start_at*: early changes shapes, late only details; and *strength*: 1 goes as far as the "
        "model is unsure, often hardly visible; here it is 4."
    ),
    "fit_a_head": (
        "## Fit, save and load a Laplace head\n"
        "1. Fit once a model and save: on the model's **own samples**, which needs no data, or on **pictures**; put "
        "*Load Image* in the place of those drawn here, or set *fit_on* to *folder*.\n"
        "2. Heads are kept in `models/laplace_heads`. After the first run press R, select group 4 and press Ctrl+M: "
        "the loaded head gives the same scores.\n"
        "3. **Try** fewer *samples*, or another *structure*, and compare maps and scores."
    ),
    "sampler_custom_advanced": (
        "## With noise, guider, sampler and sigmas of your own\n"
        "1. **SamplerCustomAdvanced (BayesDiff)** takes what the stock node takes and returns the same latent.\n"
        "2. **Uncertainty Options** keeps the uncertainty at each of the sigmas, for the plot, and shows it in the "
        "preview; the map is measured in pixels.\n"
        "3. **Try** another guider or sampler, or another *estimator* in the options."
    ),
    "sd15": (
        "## SD 1.5: where is it unsure, and mend it\n"
        "1. Choose **your checkpoint** in *Your checkpoint* and press Run: a head is fitted, four pictures are sampled "
        "with their uncertainty, and the least certain part of each is drawn again.\n"
        "2. Fitting is the long part. Next time connect *Load the head* in its place and mute group 2 (Ctrl+M).\n"
        "3. **Try** quality *draft* for speed, *precise* for a map with less noise."
    ),
    "sdxl": (
        "## SDXL: where is it unsure, and mend it\n"
        "1. Choose **your checkpoint** in *Your checkpoint* and press Run: a head is fitted, two pictures are sampled "
        "with their uncertainty, and the least certain part of each is drawn again.\n"
        "2. Fitting is the long part. Next time connect *Load the head* in its place and mute group 2 (Ctrl+M).\n"
        "3. **Try** quality *draft* for speed, *precise* for a map with less noise."
    ),
    "flux": (
        "## Flux: where is it unsure, and mend it\n"
        "1. Choose **your files** in the three loaders and press Run: a head is fitted at cfg 1, one picture is "
        "sampled with its uncertainty, and its least certain part is drawn again.\n"
        "2. Fitting is the long part. Next time connect *Load the head* in its place and mute group 2 (Ctrl+M).\n"
        "3. **Try** quality *balanced* or *precise* for a map with less noise."
    ),
}

# Four pictures or one, as node and number in its batch; or a card, where the graph cannot be run without a model file.
THUMBNAILS: dict[str, list[tuple[str, int]] | dict] = {
    "quickstart": [("13", 0), ("15", 0), ("16", 0), ("17", 0)],
    "batch_filter": [("10", 0)],
    "best_of_n": [("8", number) for number in range(4)],
    "mask_to_inpaint": [("6", 1), ("8", 1), ("17", 1), ("25", 1)],
    "repair_loop": [("12", 3), ("14", 4), ("12", 4), ("12", 5)],
    "variations": [("9", number) for number in range(4)],
    "fit_a_head": [("8", 0), ("8", 1), ("17", 0), ("17", 1)],
    "sampler_custom_advanced": [("14", 0)],
    "sd15": {"title": "SD 1.5", "lines": ["needs your checkpoint"]},
    "sdxl": {"title": "SDXL", "lines": ["needs your checkpoint"]},
    "flux": {"title": "Flux", "lines": ["needs your model,", "text encoders and VAE"]},
}

# As ComfyUI's own templates name them, so that the page can offer the file where it is missing.
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
