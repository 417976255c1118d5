"""The parts of scripts/bench_rivals.py: ggrun beside llama.cpp on the same files and threads."""
