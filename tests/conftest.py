"""For all tests."""

from __future__ import annotations

import signal

# Tests that run side by side are children of processes that ignore Ctrl-C, and so would everything be that they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
