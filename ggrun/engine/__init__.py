"""The engine: one thread that owns sequences, KV blocks and executors; everything else talks to it by messages."""
