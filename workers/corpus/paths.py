"""Names of files of a corpus: full, or relative to `corpus.root`."""

from mvqkd.workers.corpus.files import full_path


def full_root(root: str | None) -> str | None:
    """`corpus.root` as processes in other working directories need it, without a `/` at its end."""
    return None if not root else full_path(root.rstrip("/") or "/")


def under_root(name: str, root: str | None) -> str:
    """The full path or url of a file that is named relative to the corpus' root (from `full_root`)."""
    path = name if is_full(name) or name.startswith("~") or not root else f"{root}/{name}"
    if path.startswith("/") and "//" not in path and "/." not in path and not path.endswith("/"):
        return path  # nothing is left to do, and of ten million paths that takes a while
    return full_path(path)


def is_full(name: str) -> bool:
    """Whether the name says by itself where the file is."""
    return name.startswith("/") or "://" in name
