"""The mathematics of BayesDiff: plain torch, no ComfyUI, usable by any host.

======================  =======================================================
``features``            a last layer as a linear map of feature rows
``laplace_head``        its Gaussian posterior: predictive variance and draws
``fit``                 fitting that posterior with laplace-torch
``storage``             the head as a safetensors file
``ensemble``            pixel-wise variance from draws held for a whole trajectory
``deviations``          the same at a fraction of the cost, at a few states of one run
``uncertainty``         what a sampler returns beside the latent
``scores``              one number a picture, also from features of decoded members
``maps``, ``masks``     reading it: heat maps, overlays and inpainting masks
``drawing``             colour bars, sheets and plots
======================  =======================================================
"""

VERSION = "0.1.0"
