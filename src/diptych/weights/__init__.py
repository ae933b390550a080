"""Weights on disk: safetensors files, pickles read without code, the Hugging Face hub."""
