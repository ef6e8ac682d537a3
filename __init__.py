"""BayesDiff for ComfyUI: where an image is likely wrong, which images to keep, and their repair."""

from comfy_api.latest import ComfyExtension, io

from .nodes import NODES

# The host serves it, and finds the help pages of the nodes in its folder docs.
WEB_DIRECTORY = "./web"


class BayesDiffExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> BayesDiffExtension:
    return BayesDiffExtension()
