"""Stable Diffusion 1, 2 and their kin: single files and folders of diffusers."""
