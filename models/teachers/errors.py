"""The error of a teacher that cannot be loaded; light, since planning asks about teachers without loading them."""


class TeacherLoadError(ValueError):
    """A teacher that cannot be loaded: not there, not reachable, of another architecture or incomplete."""
