"""The parts of the benchmark ``usefulness``.

==========  =====================================================================
``bench``   a model, how it is sampled, and all that was sampled and judged
``images``  tests of scores: do they find bad images?
``regions`` tests of maps: do they find a fault that was planted?
``acting``  tests of repair and Best of N: does acting on the uncertainty help?
``tables``  rows in Markdown
``figures`` sheets of images
==========  =====================================================================
"""
