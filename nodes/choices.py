"""A node takes the choices that it offers, and no others.

Older hosts do not look at the choices of such nodes, and no host looks at what a link brings.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

# Of a long list the sentence names these many.
MOST_NAMED = 12


def offered(node: type[io.ComfyNode]) -> dict[str, list[str]]:
    """What can be chosen at each input that offers a choice."""
    return {item.id: item.options for item in node.define_schema().inputs if isinstance(item, io.Combo.Input)}


def check_choices(node: type[io.ComfyNode], given: Mapping[str, Any]) -> None:
    """Check what was chosen.

    Args:
        given: values by input; lists of them for a node that takes lists, None where a link will bring one.

    Raises:
        ValueError: something is not offered.
    """
    for name, options in offered(node).items():
        chosen = given.get(name)
        for value in chosen if isinstance(chosen, (list, tuple)) else [chosen]:
            if value is not None and value not in options:
                named = ", ".join(options[:MOST_NAMED]) or "none yet"
                more = f" and {len(options) - MOST_NAMED} more" if len(options) > MOST_NAMED else ""
                raise ValueError(
                    f"Expected one of what {name} offers ({named}{more}), got '{value}'; choose one of these."
                )


def take_only_offered(node: type[io.ComfyNode]) -> None:
    """Let a node check its choices: when its graph is queued, and again before it works."""
    choices = list(offered(node))
    if not choices:
        return
    own: Any = node.validate_inputs
    is_own = own.__func__ is not io.ComfyNode.validate_inputs.__func__  # pyright: ignore[reportFunctionMemberAccess]
    wanted = list(inspect.signature(own).parameters) if is_own else []

    # An error, since a sentence that is returned the host repeats for every input that is named.
    def validate_inputs(cls, **given) -> bool | str:
        check_choices(node, given)
        return own(**{name: given[name] for name in wanted if name in given}) if is_own else True

    # By its signature the host knows what to pass, and what is left for it to check.
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = ["cls", *dict.fromkeys([*wanted, *choices])]
    signature = inspect.Signature([inspect.Parameter(name, kind, default=None) for name in names])
    validate_inputs.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]

    execute: Any = node.execute
    in_order = list(inspect.signature(execute).parameters)

    @functools.wraps(execute.__func__)
    def checked(cls, *values, **given) -> io.NodeOutput:
        check_choices(node, dict(zip(in_order, values)) | given)
        return execute.__func__(cls, *values, **given)

    node.validate_inputs = classmethod(validate_inputs)  # pyright: ignore[reportAttributeAccessIssue]
    node.execute = classmethod(checked)  # pyright: ignore[reportAttributeAccessIssue]
