"""Weights on disk: safe files, and published layouts turned into ours."""
