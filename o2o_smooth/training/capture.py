"""CUDA graphs: work that is recorded once and then launched as a whole."""

from __future__ import annotations

from typing import Any

import torch

from o2o_smooth.training.launch import Work


class CudaCapture:
    """Captures work on one device; all graphs share one pool of memory, since they run one after the other.

    A graph's tensors are lost when another one runs: what is to stay must be copied to tensors made before the capture.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool: Any = None

    def warm_up(self, work: Work) -> None:
        """Do the work on the stream that captures it, where libraries then have what they set up at a first call."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def __call__(self, work: Work) -> Work:
        """Record the work; the result launches it on the current stream.

        Raises:
            RuntimeError: Something in it cannot be captured, or the memory does not suffice.
        """
        graph = torch.cuda.CUDAGraph()
        # Other threads may fetch actions meanwhile; with the global mode that would break the capture.
        with (
            torch.cuda.device(self.device),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
        ):
            work()
        self._pool = graph.pool()
        return graph.replay
