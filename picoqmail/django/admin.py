"""A page of the admin site: what lies in the spool, why, and retry, hold and release.

Everything else about mail is for who runs the host, on the command line. All text of a message
is shown by Django's templates, which escape it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse

from picoqmail.admin.selection import KINDS
from picoqmail.django.models import SpooledMessage
from picoqmail.django.options import open_spool
from picoqmail.errors import NoSuchMessageError, PicoqmailError

if TYPE_CHECKING:
    from picoqmail.admin.selection import Entry
    from picoqmail.library.api import Spool

PAGE_SIZE = 100
HEADER_LIMIT_OCTETS = 16384
VERBS = ("retry", "hold", "release")
_LEVELS = {"done": messages.SUCCESS, "unchanged": messages.INFO}


@admin.register(SpooledMessage)
class SpooledMessageAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # no generic at run time
    """Lists and explains the spool."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Mail is sent by programs."""
        del request
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Deleting mail is for who runs the host."""
        del request, obj
        return False

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> SpooledMessage | None:
        """The message if the spool has it; no table is asked."""
        del request, from_field
        try:
            open_spool().get(object_id)
        except PicoqmailError:
            return None
        return SpooledMessage(id=object_id)

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The newest messages of a state, and the state of the spool."""
        if not self.has_view_or_change_permission(request):
            raise PermissionDenied
        if request.method == "POST":
            return self._act(request, request.POST.getlist("id"), request.get_full_path())
        state = request.GET.get("state", "")
        states = (state,) if state in KINDS else ()
        wanted = {"recipient": request.GET.get("q", "").strip()}
        context: dict[str, Any] = {"rows": [], "problem": ""}
        try:
            spool = open_spool()
            found = spool.list(*states, **wanted, newest_first=True)  # type: ignore[arg-type]
            rows = [_row(one) for one in islice(found, PAGE_SIZE + 1)]
            context |= {"rows": rows[:PAGE_SIZE], "more": len(rows) > PAGE_SIZE}
            context["status"] = _status(spool)
        except PicoqmailError as exc:
            context["problem"] = str(exc)
        return self._page(
            request,
            "picoqmail/changelist.html",
            title="Mail in the spool",
            chosen=state if states else "",
            kinds=KINDS,
            q=wanted["recipient"],
            page_size=PAGE_SIZE,
            **context,
            **(extra_context or {}),
        )

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """One message: where it is, why, and what will become of it."""
        del form_url
        if not self.has_view_or_change_permission(request):
            raise PermissionDenied
        message_id = unquote(object_id)
        if request.method == "POST":
            return self._act(request, [message_id], request.get_full_path())
        spool = open_spool()
        try:
            entry = spool.get(message_id)
            story = spool.explain(message_id)
            result = spool.result(message_id)
            header = _header(spool, message_id)
        except NoSuchMessageError as exc:
            raise Http404(str(exc)) from exc
        return self._page(
            request,
            "picoqmail/message.html",
            title=message_id,
            row=_row(entry),
            entry=entry,
            story=story,
            result=result,
            header=header,
            **(extra_context or {}),
        )

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """A message has its history on its own page."""
        del request, extra_context
        return HttpResponseRedirect(
            reverse("admin:picoqmail_spooledmessage_change", args=(object_id,))
        )

    def _act(self, request: HttpRequest, ids: list[str], back: str) -> HttpResponse:
        """Do a verb to messages, tell what came of it, and show the page again."""
        if not self.has_change_permission(request):
            raise PermissionDenied
        verb = request.POST.get("verb", "")
        if verb not in VERBS:
            raise Http404(f"there is no verb {verb!a}")
        if not ids:
            self.message_user(request, "No message was chosen.", messages.WARNING)
        spool = open_spool()
        for message_id in ids:
            try:
                outcome = getattr(spool, verb)(message_id)
            except PicoqmailError as exc:
                self.message_user(request, str(exc), messages.ERROR)
                if isinstance(exc, NoSuchMessageError):
                    back = reverse("admin:picoqmail_spooledmessage_changelist")
            else:
                level = _LEVELS.get(outcome.result, messages.WARNING)
                self.message_user(request, f"{message_id} {outcome.detail}.", level)
                if outcome.result == "done":
                    self.log_change(request, SpooledMessage(id=message_id), verb)
        return HttpResponseRedirect(back)

    def _page(self, request: HttpRequest, template: str, **context: object) -> TemplateResponse:
        return TemplateResponse(
            request,
            template,
            {
                **self.admin_site.each_context(request),
                "opts": self.opts,
                "verbs": VERBS if self.has_change_permission(request) else (),
                **context,
            },
        )


def _row(entry: Entry) -> dict[str, Any]:
    """What one line of the list shows."""
    message = entry.message
    row: dict[str, Any] = {
        "id": entry.id,
        "state": entry.state,
        "created": _moment(entry.created),
        "damage": entry.damage,
    }
    if message is not None:
        last = next((one.reply for one in message.recipients if one.reply), "")
        row |= {
            "sender": message.sender or "<>",
            "recipients": message.recipients,
            "size": message.size,
            "attempts": message.attempts,
            "held": message.held,
            "next_attempt": None if message.held else _moment(message.next_attempt),
            "last": last,
        }
    return row


def _moment(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        # A sidecar may say anything.
        return None


def _status(spool: Spool) -> dict[str, Any]:
    found = spool.status()
    return {
        "counts": {name: heap.messages for name, heap in found.heaps.items()},
        "held": found.held,
        "oldest": found.oldest_waiting and _moment(found.oldest_waiting),
        "outages": found.outages,
    }


def _header(spool: Spool, message_id: str) -> str:
    """The message's header, as far as a page may show."""
    octets = b""
    try:
        for block in spool.body(message_id):
            octets += block
            if len(octets) > HEADER_LIMIT_OCTETS or b"\n\n" in octets or b"\r\n\r\n" in octets:
                break
    except PicoqmailError as exc:
        return str(exc)
    octets = octets.replace(b"\r\n", b"\n").partition(b"\n\n")[0][:HEADER_LIMIT_OCTETS]
    return octets.decode("utf-8", "backslashreplace")
