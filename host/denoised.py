"""The exact posterior variance of ``denoised`` at a state of one's own choice, in the latent's own layout.

The samplers read it off their own run, see :mod:`.look`; this is what they are checked against.
"""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher

from ..bayesdiff_core.laplace_head import LaplaceHead
from .last_layer import LastLayer
from .look import Look
from .state import latent_gain, output_gain, visit_state
from .tail import Tail


def denoised_variance(
    model: ModelPatcher, layer: LastLayer, tail: Tail, head: LaplaceHead, latent: torch.Tensor, share: float,
    eps: torch.Tensor, positive, negative, cfg: float,
) -> torch.Tensor:  # fmt: skip
    """Variance of ``denoised`` at one state, under one draw of W for both halves of the guidance.

    ``Var D = (dD/dF)² gamma²`` with gamma² of the guided features; the trajectory takes no part in it.

    Args:
        tail: from :func:`~.tail.read_tail`, of a latent of this size.
        latent, share, eps: the state, see :func:`~.state.visit_state`.

    Returns:
        the latent's shape, in squared units of the latent as the user sees it.

    Raises:
        ValueError: a prompt of several parts (areas, combined prompts), whose predictions are mixed as pictures.
    """
    look, found = Look(layer, head), []

    def visit(denoise, x, sigma, x0):
        with look.once():
            denoise(x)
        if not look.is_guided_pair():
            raise ValueError(
                f"Expected one positive and one negative prompt for the whole picture, got {len(look.parts)} parts; "
                "use the posterior ensemble, which takes any prompt."
            )
        gain = output_gain(model.get_model_object("model_sampling"), sigma, x)
        seen = look.variance(cfg)
        assert seen is not None, "a guided pair was seen"
        variance = tail.variance_to_latent(seen) * gain.square().cpu()
        found.append(variance * latent_gain(model.model, x).square().cpu())

    clone = model.clone()
    look.add_to(clone)
    visit_state(clone, latent, share, eps, positive, negative, cfg, visit)
    return found[0]
