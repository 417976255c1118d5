"""The CPU's op kernels, one noun a file.

Every kernel is `kernel(step, control, thread, chunk) -> int64` over addresses (see `layout`): asked with chunk -1 it says how many
chunks the step has in this batch, else it computes that chunk and returns 0. A step's results must not depend on who does which.
"""
