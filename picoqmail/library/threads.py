"""Doing one thing to several items by a few threads at once; nothing else lives here.

Not concurrent.futures: its executors refuse to work once the main thread has ended, while other
threads of the program may still have mail to send.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Item = TypeVar("Item")
Result = TypeVar("Result")


def abreast(do: Callable[[Item], Result], items: Sequence[Item], threads: int) -> list[Result]:
    """Return the results of `do` for each of `items`, in order; the caller is one of the `threads`.

    Where no thread can be had the caller does all of it. Raises the first error that `do`
    raised, after all that was begun has ended.
    """
    results: dict[int, Result] = {}
    errors: list[BaseException] = []
    waiting = iter(range(len(items)))
    lock = threading.Lock()

    def work() -> None:
        while not errors:
            with lock:
                index = next(waiting, -1)
            if index < 0:
                return
            try:
                results[index] = do(items[index])
            except BaseException as exc:  # noqa: BLE001 - raised by the caller's thread
                errors.append(exc)

    helpers = []
    for _ in range(min(threads, len(items)) - 1):
        helper = threading.Thread(target=work, name="picoqmail", daemon=True)
        try:
            helper.start()
        except RuntimeError:
            # The limit of the system or of this process, or its end.
            break
        helpers.append(helper)
    try:
        work()
    finally:
        for helper in helpers:
            helper.join()
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(items))]
