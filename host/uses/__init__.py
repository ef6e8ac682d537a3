"""What is built on sampling runs.

==============  ========================================================================================
``finished``    the uncertainty of images that are there already, however they were made
``best_of_n``   ranks many images early and finishes the best
``resample``    variations, drawn from the trajectory of a run
``repair``      redraws the least certain part and keeps the better image
``redraw``      an uncertainty without a head: finished latents are drawn again from half-way
``renoise``     another: they are noised again, and predicted
==============  ========================================================================================
"""
