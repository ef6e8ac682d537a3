"""Many images on many GPUs: a workflow with a sampler (BayesDiff) run by Ray, and the best images kept.

``plan`` says what is to be made, ``worker`` makes it in a ComfyUI of its own (``server``, ``guard``), ``crew`` is Ray,
``driver`` hands the tasks out, ``table`` remembers what came back, and ``report`` shows it.
"""


class Problem(Exception):
    """What went wrong and what to do about it, in one sentence."""
