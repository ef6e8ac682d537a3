"""The exact posterior variance of one prediction of ``denoised``, in the latent's own layout.

The samplers do not need it: they draw. It is what they are checked against, and the way to γ² for another host.
"""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..bayesdiff_core.features import guided_features
from ..bayesdiff_core.laplace_head import LaplaceHead
from .last_layer import LastLayer
from .state import latent_gain, output_gain, visit_state
from .tail import Tail

WRAPPER_KEY = "bayesdiff_guided"
COND, UNCOND = 0, 1


def denoised_variance(
    model: ModelPatcher, layer: LastLayer, tail: Tail, head: LaplaceHead, latent: torch.Tensor, share: float,
    eps: torch.Tensor, positive, negative, cfg: float,
) -> torch.Tensor:  # fmt: skip
    """Variance of ``denoised`` at one state, under one draw of W for both halves of the guidance.

    ``Var D = (∂D/∂F)² γ²`` with γ² of the guided features; the trajectory takes no part in it.

    Args:
        tail: from :func:`~.tail.read_tail`, of a latent of this size.
        latent, share, eps: the state, see :func:`~.state.visit_state`.

    Returns:
        the latent's shape, in squared units of the latent as the user sees it.

    Raises:
        ValueError: a prompt of several parts (areas, combined prompts), whose predictions are mixed as pictures.
    """
    parts: dict[int, list[torch.Tensor]] = {COND: [], UNCOND: []}
    found: list[torch.Tensor] = []

    def apply_model(executor, *args, **kwargs):
        options = kwargs.get("transformer_options") or args[5]
        seen: list[torch.Tensor] = []
        with layer.watched(seen.append):
            out = executor(*args, **kwargs)
        order = options["cond_or_uncond"]
        for which, features in zip(order, seen[0].float().chunk(len(order))):
            parts[which].append(features)
        return out

    def visit(denoise, x, sigma, x0):
        denoise(x)
        if len(parts[COND]) != 1 or len(parts[UNCOND]) > 1:
            raise ValueError(
                f"Expected one positive and one negative prompt for the whole picture, got {len(parts[COND])} and "
                f"{len(parts[UNCOND])} parts; use the posterior ensemble, which takes any prompt."
            )
        features = parts[COND][0]
        if parts[UNCOND]:
            features = guided_features(features, parts[UNCOND][0], cfg)
        gain = output_gain(model.get_model_object("model_sampling"), sigma, x)
        variance = tail.variance_to_latent(head.variance(features)) * gain.square()
        found.append(variance * latent_gain(model.model, x).square())

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, WRAPPER_KEY, apply_model)
    visit_state(clone, latent, share, eps, positive, negative, cfg, visit)
    return found[0]
