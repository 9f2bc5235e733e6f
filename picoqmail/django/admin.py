"""A page of the admin site: the messages of the spool, with explanations and actions.

Reading requires the permission to view. Retry, hold, release and requeue require the permission to
change; delete requires that to delete. Django's templates escape all text of a message.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email import policy
from email.parser import BytesHeaderParser
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse

from picoqmail.admin.selection import KINDS
from picoqmail.django.mailers import mailers, spool_of_mailer
from picoqmail.django.models import SpooledMessage
from picoqmail.errors import NoSuchMessageError, PicoqmailError

if TYPE_CHECKING:
    from picoqmail.admin.selection import Entry
    from picoqmail.library.api import Spool

PAGE_SIZE = 100
SHOWN_HEADER_OCTETS = 16384
SUBJECT_LIMIT = 200
VERBS = ("retry", "hold", "release", "requeue")
DELETE = "delete"
_LEVELS = {"done": messages.SUCCESS, "unchanged": messages.INFO}


@admin.register(SpooledMessage)
class SpooledMessageAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # no generic at run time
    """Lists and explains the spool."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Mail is sent by programs."""
        del request
        return False

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> SpooledMessage | None:
        """Return the message if the spool has it; the database is not used."""
        del from_field
        try:
            _spool(request).get(object_id)
        except PicoqmailError:
            return None
        return SpooledMessage(id=object_id)

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the newest messages of a state, and the state of the spool."""
        if not self.has_view_or_change_permission(request):
            raise PermissionDenied
        if request.method == "POST":
            return self._act(request, request.POST.getlist("id"))
        state = request.GET.get("state", "")
        states = (state,) if state in KINDS else ()
        wanted = {"recipient": request.GET.get("q", "").strip()}
        context: dict[str, Any] = {"rows": [], "problem": ""}
        try:
            spool = _spool(request)
            found = spool.list(*states, **wanted, newest_first=True)  # type: ignore[arg-type]
            entries = list(islice(found, PAGE_SIZE + 1))
            context["rows"] = [_row(spool, one) for one in entries[:PAGE_SIZE]]
            context["more"] = len(entries) > PAGE_SIZE
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
        """Show one message: where it is, why, and what happens next."""
        del form_url
        if not self.has_view_or_change_permission(request):
            raise PermissionDenied
        message_id = unquote(object_id)
        if request.method == "POST":
            return self._act(request, [message_id])
        spool = _spool(request)
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
            row=_row(spool, entry),
            entry=entry,
            story=story,
            result=result,
            header=header,
            **(extra_context or {}),
        )

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Delete one message, after asking for confirmation."""
        del extra_context
        if not self.has_delete_permission(request):
            raise PermissionDenied
        return self._delete(request, [unquote(object_id)])

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Redirect to the message's own page, which has its history."""
        del request, extra_context
        return HttpResponseRedirect(
            reverse("admin:picoqmail_spooledmessage_change", args=(object_id,))
        )

    def _act(self, request: HttpRequest, ids: list[str]) -> HttpResponse:
        """Apply a verb to messages, report the outcomes, and show the page again."""
        verb = request.POST.get("verb", "")
        if verb not in (*VERBS, DELETE):
            raise Http404(f"there is no verb {verb!a}")
        if verb not in self._verbs(request):
            raise PermissionDenied
        if not ids:
            self.message_user(request, "No message was chosen.", messages.WARNING)
        elif verb == DELETE:
            return self._delete(request, ids)
        return HttpResponseRedirect(self._do(request, verb, ids) or request.get_full_path())

    def _delete(self, request: HttpRequest, ids: list[str]) -> HttpResponse:
        """Ask for confirmation first; then delete, and show the list."""
        listing = reverse("admin:picoqmail_spooledmessage_changelist") + _query(request)
        if request.POST.get("confirmed"):
            self._do(request, DELETE, ids)
            return HttpResponseRedirect(listing)
        spool = _spool(request)
        rows = []
        for message_id in ids:
            try:
                rows.append(_row(spool, spool.get(message_id)))
            except PicoqmailError as exc:
                self.message_user(request, str(exc), messages.ERROR)
        if not rows:
            return HttpResponseRedirect(listing)
        return self._page(
            request, "picoqmail/delete.html", title="Delete mail", rows=rows, listing=listing
        )

    def _do(self, request: HttpRequest, verb: str, ids: list[str]) -> str:
        """Apply a verb, with a line for each; return the list's URL if a message is gone."""
        spool = _spool(request)
        gone = ""
        for message_id in ids:
            try:
                outcome = getattr(spool, verb)(message_id)
            except PicoqmailError as exc:
                self.message_user(request, str(exc), messages.ERROR)
                if isinstance(exc, NoSuchMessageError):
                    gone = reverse("admin:picoqmail_spooledmessage_changelist") + _query(request)
            else:
                level = _LEVELS.get(outcome.result, messages.WARNING)
                self.message_user(request, f"{message_id} {outcome.detail}.", level)
                if outcome.result == "done":
                    self.log_change(request, SpooledMessage(id=message_id), verb)
        return gone

    def _verbs(self, request: HttpRequest) -> tuple[str, ...]:
        """Return the verbs that this user may apply."""
        change = VERBS if self.has_change_permission(request) else ()
        delete = (DELETE,) if self.has_delete_permission(request) else ()
        return (*change, *delete)

    def _page(self, request: HttpRequest, template: str, **context: object) -> TemplateResponse:
        return TemplateResponse(
            request,
            template,
            {
                **self.admin_site.each_context(request),
                "opts": self.opts,
                "verbs": self._verbs(request),
                "mailers": sorted(mailers()),
                "mailer": request.GET.get("mailer", ""),
                "query": _query(request),
                **context,
            },
        )


def _spool(request: HttpRequest) -> Spool:
    """Return the spool of the page; `?mailer=ALIAS` chooses one of several."""
    alias = request.GET.get("mailer", "")
    if alias and alias not in mailers():
        raise Http404(f"there is no mailer {alias!a}")
    return spool_of_mailer(alias)


def _query(request: HttpRequest) -> str:
    """Return the query string of links to other pages of the same spool."""
    alias = request.GET.get("mailer", "")
    return "?" + urlencode({"mailer": alias}) if alias else ""


def _row(spool: Spool, entry: Entry) -> dict[str, Any]:
    """Return the content of one line of the list."""
    message = entry.message
    row: dict[str, Any] = {
        "id": entry.id,
        "state": entry.state,
        "created": _moment(entry.created),
        "damage": entry.damage,
        "subject": "" if message is None else _subject(spool, entry.id),
    }
    if message is not None:
        last = next((one.reply for one in message.recipients if one.reply), "")
        row |= {
            "sender": message.sender or "<>",
            "recipients": message.recipients,
            "size": message.size,
            "attempts": message.attempts,
            "held": message.held,
            "in_doubt": entry.is_suspended,
            "next_attempt": None if message.held else _moment(message.next_attempt),
            "last": last,
        }
    return row


def _moment(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        # A sidecar may contain any number.
        return None


def _status(spool: Spool) -> dict[str, Any]:
    found = spool.status()
    return {
        "counts": {name: heap.messages for name, heap in found.heaps.items()},
        "held": found.held,
        "in_doubt": found.in_doubt,
        "oldest": found.oldest_waiting and _moment(found.oldest_waiting),
        "outages": found.outages,
    }


def _subject(spool: Spool, message_id: str) -> str:
    """Return the subject, decoded, on one line."""
    try:
        octets = _header_octets(spool, message_id)
    except PicoqmailError:
        # The message's own page shows the reason.
        return ""
    parsed = BytesHeaderParser(policy=policy.default).parsebytes(octets)
    try:
        subject = str(parsed["Subject"] or "")
    except Exception:  # noqa: BLE001 - a stranger's header may make the parser raise anything
        subject = "(cannot be read)"
    return " ".join(subject.split())[:SUBJECT_LIMIT]


def _header(spool: Spool, message_id: str) -> str:
    """Return the message's header, up to the limit of a page."""
    try:
        octets = _header_octets(spool, message_id)
    except PicoqmailError as exc:
        return str(exc)
    return octets.decode("utf-8", "backslashreplace")


def _header_octets(spool: Spool, message_id: str) -> bytes:
    octets = b""
    for block in spool.body(message_id):
        octets += block
        if len(octets) > SHOWN_HEADER_OCTETS or b"\n\n" in octets or b"\r\n\r\n" in octets:
            break
    return octets.replace(b"\r\n", b"\n").partition(b"\n\n")[0][:SHOWN_HEADER_OCTETS]
