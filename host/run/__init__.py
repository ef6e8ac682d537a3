"""One sampling run of the host, and the uncertainty of what it samples.

============  ==========================================================================================
``sample``    the whole: the stock run first, then the estimate of its uncertainty
``context``   what a run is: guider, options, sigmas, mask, device; made once, never changed
``stock``     the stock sampler, with progress and wrappers around it
``observe``   watches a run, and lets an estimator work once it is over
``recorder``  sees the run go by and keeps its states
``look``      the exact variance of a prediction, read while the run makes it
``replay``    answers an estimator: the network at a state of the run, with other weights
``ride``      sends a deviation through the sampler's own function
``ensemble``  samples every member from start to end
``space``     scales and slopes between the sampler's x, the model's latent, and the latent that users see
``progress``  one progress bar over all of it, and the previews
``quirks``    habits of the host that a second look at a run has to know
============  ==========================================================================================
"""
