"""BayesDiff for ComfyUI: where an image is likely wrong, which images to keep, and their repair."""

from comfy_api.latest import ComfyExtension, io

from .nodes import NODES


class BayesDiffExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> BayesDiffExtension:
    return BayesDiffExtension()
