"""The CPU's op kernels, one noun a file. Every kernel is `void kernel(step, control, thread)` over addresses (see `layout`)."""
