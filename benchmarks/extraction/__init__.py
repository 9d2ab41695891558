"""Extraction beside the bare teacher, Ray Data and a plain loop, in one run: `python -m benchmarks.extraction`."""
