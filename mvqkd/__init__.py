"""The one name under which the package is imported: `mvqkd.models`, `mvqkd.workers`, `mvqkd.storage`, `mvqkd.pipeline`.

The rooms are folders at the top of the repository. An installed wheel has them inside of this package. In a checkout
they lie beside it, and there this file says so, which works without an installation. Nothing is ever imported as
`models` or `workers`, so a user's own folders of those names, earlier on the path, are in nobody's way.
"""

from pathlib import Path

__version__ = "0.2.0"

if not (Path(__file__).parent / "models").is_dir():
    __path__.append(str(Path(__file__).parents[1]))
