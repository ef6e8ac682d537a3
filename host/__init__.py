"""The one seam to ComfyUI's internals.

==============  ==============================================================================
``last_layer``  finds a model's last layer and tells whether a head belongs to it
``tail``        where the outputs of that layer land in the latent, read off the model
``state``       one noised state of a model, visited through the host's own sampling path
``denoised``    exact variance of one prediction of ``denoised``
``fitting``     collects features at noised latents for a fit
``sampling``    runs the stock sampler and finds the uncertainty beside it
``deviations``  follows posterior draws beside a run
``files``       the models folder of Laplace heads, and folders of pictures
``demo_model``  the model that comes with the pack
==============  ==============================================================================
"""
