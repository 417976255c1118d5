"""quant: bytes <-> numbers.

Knows the block layouts of GGML's weight formats, how to read and write them with NumPy (the reference), and
the kernels that multiply with them. Knows no tensor names, files, threads, ops or devices, and imports
nothing but NumPy and Numba (Numba only under `quant.cpu` and `quant.simd`).
"""
