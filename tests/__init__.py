"""A package of its own: some installed packages bring one called `tests`, which processes would import instead."""
