"""Benchmarks: A beside B in one run, medians, JSON of every sample, a picture."""
