"""What Django needs to know."""

import os
from pathlib import Path

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
if url := os.environ.get("SHOP_POSTGRES"):  # "host=… dbname=… user=…"
    options = dict(each.split("=", 1) for each in url.split())
    DATABASES["default"] = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": options["dbname"],
        "USER": options["user"],
        "HOST": options["host"],
        "PORT": options.get("port", ""),
    }
