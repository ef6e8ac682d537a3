"""The socket types of the pack."""

from comfy_api.latest import io

LaplaceHeadType = io.Custom("LAPLACE_HEAD")
UncertaintyType = io.Custom("UNCERTAINTY")
UncertaintyOptionsType = io.Custom("UNCERTAINTY_OPTIONS")

CATEGORY = "BayesDiff"
# Between lines of text: Preview Any shows Markdown, which would run them together.
LINE_BREAK = "  \n"
