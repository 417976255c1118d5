"""The parts of scripts/gpu_bench.py: what a GPU can do, and what ggrun gets from it."""
