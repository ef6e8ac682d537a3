"""A pack for tests: nodes that write what reaches them to a file, stand for a large text encoder, or spoil a map."""

import dataclasses
import os

import folder_paths
import safetensors.torch
import torch
from comfy.comfy_types.node_typing import IO


class Probe:
    """Writes a LATENT, an UNCERTAINTY or scores to ``NAME.safetensors`` in the output folder."""

    CATEGORY = "tests"
    RETURN_TYPES = ()
    FUNCTION = "write"
    OUTPUT_NODE = True
    INPUT_IS_LIST = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (IO.ANY, {}), "name": ("STRING", {"default": "probe"})}}

    def write(self, value, name):
        first = value[0]
        if isinstance(first, dict):
            found = first["samples"]
        elif hasattr(first, "variance"):
            found = first.variance
        else:
            found = torch.tensor(value, dtype=torch.float64)
        os.makedirs(folder_paths.get_output_directory(), exist_ok=True)
        path = os.path.join(folder_paths.get_output_directory(), f"{name[0]}.safetensors")
        safetensors.torch.save_file({"value": found.contiguous().cpu()}, path)
        return {}


class Prompt:
    """A CONDITIONING of a width, for models whose text encoder is too large for tests."""

    CATEGORY = "tests"
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"width": ("INT", {"default": 4096, "max": 65536}), "seed": ("INT", {"default": 0})}}

    def make(self, width, seed):
        generator = torch.Generator().manual_seed(seed)
        return ([[torch.randn(1, 7, width, generator=generator), {}]],)


class Spoil:
    """An UNCERTAINTY whose first image is no number."""

    CATEGORY = "tests"
    RETURN_TYPES = ("UNCERTAINTY",)
    FUNCTION = "spoil"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"uncertainty": ("UNCERTAINTY", {})}}

    def spoil(self, uncertainty):
        variance = uncertainty.variance.clone()
        variance[0] = float("nan")
        return (dataclasses.replace(uncertainty, variance=variance),)


NODE_CLASS_MAPPINGS = {"Probe": Probe, "Prompt": Prompt, "Spoil": Spoil}
