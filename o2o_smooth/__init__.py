"""Offline-to-online reinforcement learning without the collapse at the switch."""

__version__ = "0.1.0"
