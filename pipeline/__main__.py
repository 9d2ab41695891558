"""`python -m pipeline` is `mvqkd`."""

from pipeline.cli import main

main()
