"""What a variance says: the UNCERTAINTY, and maps, masks, scores and ranks read off it.

================  ============================================================================
``uncertainty``   what a sampler returns with the latent, and the one place that reads it
``members``       image and members as one batch of latents, and back
``grid``          pixels and frames of a latent cell
``scores``        one number per image, clip or frame, also from features of decoded members
``scale``         where a score lies among those of the model's own images
``maps``          heat maps at image size, or measured in pixels
``levels``        maps in whole numbers, of which a page makes the same masks
``masks``         masks of the least certain part, for inpainting
``clip_masks``    masks of clips: for each frame or latent frame, and over time
``rank``          which images of a batch to keep
================  ============================================================================
"""
