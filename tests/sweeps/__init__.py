"""Sweeps: the same few steps again and again, each time with one fault at the next possible place."""
