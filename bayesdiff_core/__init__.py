"""The mathematics of BayesDiff: torch, numpy, scipy, safetensors and Pillow. It knows no ComfyUI and serves any host.

================  ============================================================================
``posterior``     the last layer's Gaussian posterior: features, fit, draws, file
``estimators``    from that posterior to the variance of an image, one file an idea
``resampling``    draws of the noisy latent, for variations and repair
``reading``       what to do with a variance: maps, masks, scores, ranks
``drawing``       sheets and plots
================  ============================================================================

Imports go one way: ``drawing`` and ``resampling`` read ``reading``, and ``posterior`` too, for the scores that a head
knows. ``reading`` reads ``estimators``, which reads none of them: a host answers its questions about the posterior.
"""

VERSION = "0.2.0"
