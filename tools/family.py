"""How to build a small instance, with random weights, of a model family from the host's own classes."""

from __future__ import annotations

import dataclasses

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models as supported
import torch
from comfy.ldm.chroma.model import ChromaParams
from comfy.ldm.chroma_radiance.model import ChromaRadianceParams
from comfy.ldm.flux.model import FluxParams
from comfy.ldm.hunyuan_video.model import HunyuanVideoParams

# Options that newer hosts want and older ones refuse.
NEWER = {
    FluxParams: dict(txt_ids_dims=[]),
    ChromaParams: dict(txt_ids_dims=[], vec_in_dim=None),
    ChromaRadianceParams: dict(txt_ids_dims=[], vec_in_dim=None, use_sequential_txt_ids=False),
    HunyuanVideoParams: dict(meanflow_sum=False),
}


@dataclasses.dataclass(frozen=True)
class Family:
    """How to build a small model of a family.

    Attributes:
        config: the host's class that knows the family, or its name in ``supported_models``.
        options: arguments of its network.
        path: where its last layer is.
        latent: shape of a latent.
        context: length and width of the text conditioning.
        extras: what else the conditioning holds.
        downscale: pixels of an image per latent cell.
        cfg: guidance to sample with.
        params: the host's class of those arguments, where there is one.
        weights: what the host wants to read from a file before it builds the model.
    """

    config: str | type
    options: dict
    path: str
    latent: tuple[int, ...]
    context: tuple[int, int] = (7, 16)
    extras: dict = dataclasses.field(default_factory=dict)
    downscale: int = 8
    cfg: float = 3.0
    params: type | None = None
    weights: dict = dataclasses.field(default_factory=dict)

    def network_options(self) -> dict:
        """The options, as the host at hand wants them."""
        if self.params is None:
            return self.options
        options = NEWER[self.params] | self.options
        return {name: value for name, value in options.items() if name in self.params.__dataclass_fields__}

    def build(self) -> comfy.model_patcher.ModelPatcher:
        options = self.network_options()
        kind = getattr(supported, self.config) if isinstance(self.config, str) else self.config
        config = kind(dict(options))
        config.unet_config = options  # the class would add settings of the full-sized model
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model(dict(self.weights), "", device=torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in sorted(model.diffusion_model.named_parameters()):
                noise = torch.randn(parameter.shape, generator=generator)
                is_gain = parameter.ndim == 1 and "bias" not in name
                scale = max(parameter.shape[-1], 4) ** -0.5 if parameter.ndim else 1.0
                parameter.copy_(1 + 0.1 * noise if is_gain else noise * scale)
            for name, buffer in model.diffusion_model.named_buffers():
                if name.endswith(("_conditioning", "inv_freq", "pos_embed")):  # what only a file fills
                    buffer.uniform_(0.01, 1.0, generator=generator)
        device = comfy.model_management.get_torch_device()
        return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))

    def conditioning(self, seed: int) -> list:
        generator = torch.Generator().manual_seed(seed)
        return [[torch.randn(1, *self.context, generator=generator), dict(self.extras)]]
