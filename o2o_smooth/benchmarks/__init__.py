"""Comparisons that run with one command."""
