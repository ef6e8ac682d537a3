"""What a node says of itself where the host can tell its page; older hosts refuse such keywords."""

from __future__ import annotations

import inspect

from comfy_api.latest import io

# For inputs that few need, which the page then folds away: ComfyUI 0.9.2 and newer.
ADVANCED = {"advanced": True} if "advanced" in inspect.signature(io.Int.Input).parameters else {}


def search_words(*words: str) -> dict[str, list[str]]:
    """Keywords for a schema: what else a node is found by. ComfyUI 0.10 and newer."""
    return {"search_aliases": list(words)} if "search_aliases" in inspect.signature(io.Schema).parameters else {}
