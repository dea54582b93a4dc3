"""Recipes: one YAML file = one run."""
