"""The short form of the fuzz test of run files; `fuzz_run_file.run(20_000, 1)` is the long one."""

import fuzz_run_file


def test_random_run_files_are_refused_or_read_as_they_say() -> None:
    fuzz_run_file.run(300, 1)
