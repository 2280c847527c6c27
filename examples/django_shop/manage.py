"""A Django project that owes EnOS an event for each inspection: in Django's own transaction.

pip install durable-outbox 'django>=5.2'
python manage.py migrate --run-syncdb
outbox --app shop.delivery:outbox db upgrade
python manage.py runserver &
outbox --app shop.delivery:outbox worker

curl -F device=turbine-7 -F severity=3 -F photo=@photo.jpg http://127.0.0.1:8000/inspections
"""

import os
import sys

from django.core.management import execute_from_command_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
if __name__ == "__main__":
    execute_from_command_line(sys.argv)
