"""Where things are."""

from django.urls import path

from shop.views import inspect

urlpatterns = [path("inspections", inspect)]
