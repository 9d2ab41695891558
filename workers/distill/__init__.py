"""Training a student from an index table, and judging it."""
