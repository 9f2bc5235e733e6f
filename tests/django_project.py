"""A Django project for the tests: its settings, its database, its users, its server.

Settings can be made once a process; the home is what a test names with `override_settings`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import django
from django.conf import settings

if TYPE_CHECKING:
    from collections.abc import Callable


BACKEND = "picoqmail.django.EmailBackend"
HAS_MAILERS = django.VERSION >= (6, 1)


def mailer(backend: str = BACKEND, **options: Any) -> dict[str, Any]:
    """The settings that name the backend, as this version of Django wants them."""
    if HAS_MAILERS:
        return {"MAILERS": {"default": {"BACKEND": backend, "OPTIONS": options}}}
    assert not options
    return {"EMAIL_BACKEND": backend}


def set_up(database: str = "", **more: Any) -> None:
    """Configure Django, once, and make the tables."""
    if settings.configured:
        return
    settings.configure(
        DEBUG=False,
        SECRET_KEY="of the tests",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="django_pages",
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": database or os.path.join(tempfile.mkdtemp(), "database"),
            }
        },
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        TIME_ZONE="UTC",
        INSTALLED_APPS=[
            "django.contrib.admin",
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "django.contrib.messages",
            "django.contrib.staticfiles",
            "picoqmail.django",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.common.CommonMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        STATIC_URL="/static/",
        USE_TZ=True,
        **mailer(),
        **more,
    )
    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0, interactive=False)


def make_user(name: str, *, is_superuser: bool, permissions: tuple[str, ...] = ()) -> Any:
    """A member of staff, or the superuser."""
    from django.contrib.auth.models import Permission, User

    user, _ = User.objects.get_or_create(
        username=name, defaults={"is_staff": True, "is_superuser": is_superuser}
    )
    user.set_password("secret")
    user.save()
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return user


def serve(home: str, database: str, port: int) -> None:
    """Run the project's server until somebody ends it."""
    set_up(database, PICOQMAIL_HOME=home)
    make_user("root", is_superuser=True)
    from django.contrib.staticfiles.handlers import StaticFilesHandler
    from django.core.servers.basehttp import WSGIRequestHandler, WSGIServer
    from django.core.wsgi import get_wsgi_application

    application: Callable[..., Any] = StaticFilesHandler(get_wsgi_application())
    settings.DEBUG = True  # Static files are served by Django itself then.
    server = WSGIServer(("127.0.0.1", port), WSGIRequestHandler)
    server.set_app(application)
    print(server.server_port, flush=True)  # noqa: T201 - told to who started it
    server.serve_forever()


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
