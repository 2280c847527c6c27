"""What Django needs to know."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

BASE_DIR = Path(os.environ.get("SHOP_DIR", Path(__file__).parent.parent))
SECRET_KEY = os.environ.get("SHOP_SECRET_KEY", "only for this example")
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
INSTALLED_APPS = ["shop"]
ROOT_URLCONF = "shop.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": BASE_DIR / "shop.db",
        "OPTIONS": {
            # What outbox.prepare() does for an engine of SQLAlchemy's: a commit survives a power cut.
            "init_command": "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;",
            # Django would begin by reading, and could not write then while a worker does.
            "transaction_mode": "IMMEDIATE",
            "timeout": 60,
        },
    }
}
if url := os.environ.get("SHOP_POSTGRES"):  # postgresql://user:password@host:port/name
    found = urlsplit(url)
    DATABASES["default"] = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": found.path.removeprefix("/"),
        "USER": unquote(found.username or ""),
        "PASSWORD": unquote(found.password or ""),
        "HOST": found.hostname or "",
        "PORT": found.port or "",
    }
