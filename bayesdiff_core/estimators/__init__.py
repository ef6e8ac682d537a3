"""How the posterior of the last layer becomes the variance of an image, one file an idea.

================  ============================================================================
``trajectory``    the nominal run, as it went
``past``          what an earlier stage left, and what this one hands over
``parts``         picture and sound of a nested latent
``base``          what an estimator is given and returns
``deviations``    members followed as small deviations from the run: what draft, balanced and precise use
``moderation``    few members, strengthened by what the run shows for nothing
``degrees``       how little a few members tell: degrees of freedom of their mean squares
``ensemble``      every member sampled from start to end: the definition
``tangents``      members that ride through the sampler's own steps, linearised
``moments``       the paper's recursion, corrected
``paper``         the paper's recursion, as published
``evidence``      what a run itself shows of the variance, for nothing
``trend``         what a head learned of how the variance follows that
``instant``       the variance by the trend alone, at no network call
``soft_mask``     what a soft mask leaves of it
``change``        a first look where there is no head
``redrawing``     change of a finished image that is drawn again, without a posterior
``renoising``     disagreement of predictions, without a posterior
``registry``      all of them by name, and the qualities that users choose from
================  ============================================================================

To add an estimator, write a subclass of :class:`~.base.Estimator` in a file of its own and give it a line in
:data:`.registry.ESTIMATORS`: docs/extending.md shows one.
"""
