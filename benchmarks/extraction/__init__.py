"""Extraction beside the bare teacher, Ray Data and a plain loop, on the same audio: `python -m benchmarks.extraction`."""
