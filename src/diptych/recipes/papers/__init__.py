"""Recipes of published models, with the values of their papers."""
