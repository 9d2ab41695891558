"""Audio in a store is on its way before a thread that decodes asks for it.

A store answers after tens of milliseconds, in which a decoding thread would do nothing: two of them could not feed a
GPU. Waiting takes no processor, so many wait at once.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mvqkd.workers.corpus.files import fetch

AT_ONCE = 32
"""GETs of a process under way."""
KEPT_BYTES = 256 * 2**20


class Fetches:
    """Fetches files; by several threads at a time, and a process that gets it by pickle has its own.

    Args:
        options: of the storage section, for `s3://`.
        kept_bytes: bound of what was begun and not asked for yet, and of files that are asked for again. What is given
            up for it is fetched anew. The last file that came is held whatever its size.
    """

    def __init__(self, options: Mapping[str, Any], *, kept_bytes: int = KEPT_BYTES) -> None:
        self._options, self._kept_bytes = options, kept_bytes
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._files: OrderedDict[str, Future[bytes]] = OrderedDict()
        self._num_bytes = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Fetches, (self._options,)

    def begin(self, url: str) -> None:
        """Begin to fetch a file that will be asked for; see `fetch`."""
        with self._lock:
            if url not in self._files:
                self._pool = self._pool or ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetch")
                self._files[url] = self._pool.submit(self._fetch, url)

    def get(self, url: str, *, again: bool) -> bytes:
        """The bytes of a file, begun or not.

        Args:
            url: as `fetch` takes it.
            again: it may be asked for again soon, for it is of a recording of which a part is wanted.

        Raises:
            FileNotFoundError, StorageError, OSError: as of `fetch`.
        """
        if again:
            self.begin(url)
        with self._lock:
            file = self._files.get(url)
        if file is None:
            return fetch(url, self._options)
        try:
            data = file.result()
        except Exception:
            # Whatever it was goes to the caller, and who asks next has it fetched anew.
            self._forget(url, file)
            raise
        if again:
            with self._lock:
                if url in self._files:
                    self._files.move_to_end(url)
        else:
            self._forget(url, file)
        return data

    def _fetch(self, url: str) -> bytes:
        data = fetch(url, self._options)
        with self._lock:
            self._num_bytes += len(data)
            for other, file in list(self._files.items()):
                if self._num_bytes <= self._kept_bytes:
                    break
                if other != url and file.done() and file.exception() is None:
                    self._drop(other)
        return data

    def _forget(self, url: str, file: "Future[bytes]") -> None:
        with self._lock:
            if self._files.get(url) is file:
                self._drop(url)

    def _drop(self, url: str) -> None:
        file = self._files.pop(url)
        if file.exception() is None:
            self._num_bytes -= len(file.result())
