"""Groups of messages whose mail a database keeps: one transaction for all of a group.

A message with an idempotency key needs the database, which alone knows the keys of all hosts. It is
not taken by the directory while the database is away.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from picoqmail.errors import PicoqmailError
from picoqmail.library.groups import Group, repeated_receipt
from picoqmail.store.acceptance import publish_group, publish_with_key
from picoqmail.submission.start_sender import start_sender

if TYPE_CHECKING:
    from collections.abc import Sequence


class DatabaseGroup(Group):
    """Messages that are accepted together into a database."""

    def _accept(self, indexes: list[int]) -> None:
        plain = [index for index in indexes if self._drafts[index].order.key is None]
        if plain:
            self._publish_all(plain)
        for index in self._left(indexes):
            self._publish_keyed(index)

    def _publish_all(self, indexes: Sequence[int]) -> None:
        drafts = {index: self._drafts[index] for index in indexes}
        try:
            for draft in drafts.values():
                order = draft.order
                if not self.are_prepared:
                    draft.incoming.seal(order.sender, order.recipients, order.extra)
            publish_group([draft.incoming for draft in drafts.values()])
        except PicoqmailError as exc:
            for index in indexes:
                self._end(index, exc)
            return
        for index, draft in drafts.items():
            self._end(index, draft.receipt)
        is_due = any("next_attempt" not in one.order.extra for one in drafts.values())
        if is_due and self.entrance.send:
            start_sender(self.entrance.home, time.time())

    def _publish_keyed(self, index: int) -> None:
        draft = self._drafts[index]
        order = draft.order
        try:
            if not self.are_prepared:
                draft.incoming.seal(order.sender, order.recipients, order.extra)
            found = publish_with_key(
                draft.incoming,
                str(order.key),
                fingerprint=draft.fingerprint,
                lifetime=self.entrance.key_lifetime_seconds(),
                key_decides=order.key_decides,
            )
        except PicoqmailError as exc:
            self._end(index, exc)
            return
        if found is not None:
            self._end(index, repeated_receipt(draft.receipt, found))
            return
        self._end(index, draft.receipt)
        if "next_attempt" not in order.extra and self.entrance.send:
            start_sender(self.entrance.home, time.time())
