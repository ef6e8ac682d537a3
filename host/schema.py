"""What a node may say of itself beyond the oldest host's schema."""

from __future__ import annotations

from comfy_api.latest import io

# For inputs that few need, which the page then folds away: `extra_dict=ADVANCED`. Every page knows it; as a keyword of
# its own, hosts before 0.9.2 refuse it.
ADVANCED = {"advanced": True}


def search_words(*words: str) -> dict[str, list[str]]:
    """Keywords for a schema: what else a node is found by, where the host can tell its page (0.10 and newer)."""
    return {"search_aliases": list(words)} if "search_aliases" in io.Schema.__dataclass_fields__ else {}
