"""The Gaussian posterior of a last layer (Kou et al. 2024, section 3.1).

================  ============================================================================
``features``      a last layer as a linear map of feature rows
``laplace_head``  the posterior: predictive variance and draws
``draws``         random numbers with an identity: number k of a seed
``fit``           fitting it with laplace-torch
``calibration``   what the head learned from its model's own images
``storage``       the head as a safetensors file
================  ============================================================================
"""
