from fuzz import fuzz_storage


def test_damaged_table_files_are_refused_by_name_or_read_right():
    fuzz_storage.run(cases=300, seed=0)
