"""The one seam to ComfyUI's internals: what differs from host to host is in here.

================  ============================================================================
``posterior``     a Laplace head, bound to the model that it belongs to
``settings``      what the stock KSampler is told
``last_layer``    which layer of a model is the last, and a change of its weights
``identity``      what ties a head to a model
``layout``        where the outputs of that layer end up in the latent
``states``        one noised state of a model, visited through the host's own sampling path
``fit``           features at noised latents, for a fit
``calibrate``     own images, sampled twice, for what a head learns of them
``run``           one sampling run: recorded, replayed by estimators, or done again by an ensemble
``uses``          what is built on runs: finished images, Best of N, resampling, repair, re-noising
``latents``       checks and sizes of latents
``selection``     some images of a batch, in the host's own formats
``decode``        images of latents and of members, and their features
``files``         the models folder of Laplace heads, and folders of images
``demo_model``    the model that comes with the pack
``compat``        what a node says of itself, as far as this host can show it
================  ============================================================================
"""
