"""Measures of images: features of published networks, and distances between sets of them."""
