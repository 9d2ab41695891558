"""The error of a teacher that cannot be loaded; light, since planning asks about teachers without loading them."""


class TeacherLoadError(ValueError):
    """A teacher that cannot be loaded: not there, not reachable, of another architecture or incomplete."""


class TeacherUnreachableError(TeacherLoadError):
    """The hub, where the teacher is, cannot be asked now, and what is needed of it is not kept here."""
