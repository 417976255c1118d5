"""NVIDIA GPUs: kernels compiled by NVRTC at first use, driven through PyCUDA. Nothing here is imported before a GPU is asked for."""
