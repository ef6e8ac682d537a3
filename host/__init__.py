"""The one seam to ComfyUI's internals.

==============  ==============================================================================
``last_layer``  finds a model's last layer and tells whether a head belongs to it
``tail``        where the outputs of that layer land in the latent, read off the model
``state``       one noised state of a model, visited through the host's own sampling path
``look``        the exact variance of a prediction, read while it is made
``denoised``    the same at a state of one's own choice
``fitting``     collects features at noised latents for a fit
``sampling``    runs the stock sampler and finds the uncertainty beside it
``beside``      what an estimator sees of a run, and how it calls the network
``best_of_n``   ranks many pictures early and finishes the best
``given``       the uncertainty of pictures that are there already
``resample``    variations drawn from the trajectory of a run
``repair``      mends the least certain part and keeps the better picture
``renoising``   noises finished latents again, for an uncertainty without a head
``decode``      pictures of latents and of members, and their features
``selection``   some pictures of a batch, in the host's own formats
``files``       the models folder of Laplace heads, and folders of pictures
``demo_model``  the model that comes with the pack
==============  ==============================================================================
"""
