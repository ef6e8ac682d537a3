"""The one seam to ComfyUI's internals.

==============  ==============================================================================
``last_layer``  finds a model's last layer and tells whether a head belongs to it
``fitting``     collects features at noised latents, through the host's own sampling path
``sampling``    runs the stock sampler and, beside it, the posterior ensemble
``files``       the models folder of Laplace heads
==============  ==============================================================================
"""
