"""Plugins are imported by their own names in their tests, as they are by the command."""

from framework.recipe.catalogue import Catalogue

Catalogue().make_plugins_importable()
