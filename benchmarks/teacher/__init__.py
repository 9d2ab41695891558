"""The speed of teachers alone; `python -m benchmarks.teacher --help`."""
