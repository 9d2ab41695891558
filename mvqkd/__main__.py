"""`python -m mvqkd` is `mvqkd`."""

from mvqkd.pipeline.cli import main

main()
