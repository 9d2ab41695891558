"""`python -m pipeline` is `mvqkd`."""

from mvqkd.pipeline.cli import main

main()
