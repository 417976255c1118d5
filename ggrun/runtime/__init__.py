"""Executors: each runs one segment of a plan on one device."""
