"""A store that serves nobody for a while: what to do meanwhile, and for how long."""

import time

from mvqkd.pipeline.errors import PoolError

PATIENCE_S = 900.0
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0


class Outage:
    """Whether there is one. While there is, one item at a time is tried, after a wait that grows.

    Args:
        patience_s: how long one may last; `PATIENCE_S` by default.
    """

    def __init__(self, *, patience_s: float | None = None) -> None:
        self._patience_s = PATIENCE_S if patience_s is None else patience_s
        self._since: float | None = None
        self._wait_s = 0.0
        self._next = 0.0

    @property
    def is_on(self) -> bool:
        """Whether the store serves nobody, as far as is known."""
        return self._since is not None

    @property
    def seconds_left(self) -> float:
        """Until something is tried again."""
        return max(0.0, self._next - time.monotonic()) if self.is_on else 0.0

    def seen(self, error: str) -> None:
        """Something failed by it.

        Raises:
            PoolError: it lasts too long.
        """
        now = time.monotonic()
        if self._since is None:
            from mvqkd.pipeline.show.progress import say  # of the driver; workers do without

            self._since, self._wait_s = now, FIRST_WAIT_S
            say(f"{error}; nothing is lost, and it is tried again for {self._patience_s / 60:g} minutes")
        elif now - self._since > self._patience_s:
            raise PoolError(
                f"for {self._patience_s / 60:g} minutes nothing could be done: {error}; once that is put right, the "
                "same command goes on where it stopped"
            )
        elif now < self._next:
            return  # begun before it was known
        else:
            self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)
        self._next = now + self._wait_s

    def over(self) -> None:
        """Something went well."""
        self._since = None
