"""The exact posterior variance of ``denoised`` at a state of one's own choice, in the latent's own layout.

The samplers read it off their own run. This is what they are checked against.
"""

from __future__ import annotations

import torch
from bayesdiff.host.layout import Layout
from bayesdiff.host.posterior import Posterior
from bayesdiff.host.run.look import Look
from bayesdiff.host.run.space import latent_slope, output_slope
from bayesdiff.host.settings import Guidance
from bayesdiff.host.states import NoisedState, visit_state


def denoised_variance(posterior: Posterior, layout: Layout, state: NoisedState, guidance: Guidance) -> torch.Tensor:
    """Variance of ``denoised`` at one state, under one draw of W for both halves of the guidance.

    ``Var D = (dD/dF)² gamma²`` with gamma² of the guided features; the trajectory takes no part in it.

    Args:
        layout: from :func:`bayesdiff.host.layout.read_layout`, of a latent of this size.

    Returns:
        the latent's shape, in squared units of the latent as the user sees it.

    Raises:
        ValueError: a prompt of several parts (areas, combined prompts), whose predictions are mixed as images.
    """
    look, found, model = Look(posterior), [], posterior.model

    def visit(denoise, x, sigma, x0):
        with look.at(reading=True):
            denoise(x)
        if not look.is_guided_pair():
            raise ValueError(
                f"Expected one positive and one negative prompt for the whole image, got {len(look.parts)} parts; "
                "use the posterior ensemble, which takes any prompt."
            )
        slope = output_slope(model.get_model_object("model_sampling"), sigma, x)
        seen, _ = look.gamma_squared(guidance.cfg, len(x))
        assert seen is not None, "a guided pair was seen"
        variance = layout.place(seen) * slope.square().cpu()
        found.append(variance * latent_slope(model.model, x).square().cpu())

    clone = model.clone()
    look.add_to(clone)
    visit_state(clone, state, guidance, visit)
    return found[0]
