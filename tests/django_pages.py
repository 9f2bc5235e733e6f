"""The pages of the Django project of the tests: the admin site, and a form that sends mail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib import admin
from django.core.mail import send_mail
from django.http import HttpResponse
from django.middleware.csrf import get_token
from django.urls import path

if TYPE_CHECKING:
    from django.http import HttpRequest

FORM = """<!doctype html><title>Sign up</title><form method="post">
<input type="hidden" name="csrfmiddlewaretoken" value="{token}">
<input name="email" id="email"><button id="go">Sign up</button></form>"""


def sign_up(request: HttpRequest) -> HttpResponse:
    """A form whose answer is sent by mail."""
    if request.method == "POST":
        send_mail("Welcome", "Thank you.", "app@example.org", [request.POST["email"]])
        return HttpResponse("<title>Done</title><p id='done'>Mail is on its way.</p>")
    return HttpResponse(FORM.format(token=get_token(request)))


urlpatterns = [path("admin/", admin.site.urls), path("", sign_up)]
