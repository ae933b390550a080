"""Recipes of the models that diptych trains on the emoji data."""
