"""The parts of scripts/bench_serve.py and scripts/soak_serve.py: a server's process, and a client that measures."""
