"""What an update reports: tensors that are averaged only when somebody reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor


class Readings(Mapping[str, Tensor]):
    """Metrics by name, (M,) each, detached and on the device.

    They are kept as the losses left them, (M, ...), and averaged over all but members at reading: an update's metrics
    are read once in hundreds of updates, and computing them every time would be a noticeable part of a small update.

    Args:
        raw: Name -> detached tensor (M, ...).
        shared: A later update will write over this memory; what is read is a copy.
    """

    def __init__(self, raw: Mapping[str, Tensor], *, shared: bool = False) -> None:
        self.raw, self.shared = raw, shared

    def __getitem__(self, name: str) -> Tensor:
        value = self.raw[name]
        if value.dim() > 1:
            return value.flatten(1).mean(1)
        return value.clone() if self.shared else value

    def __repr__(self) -> str:
        each = (f"{name}={[float(f'{x:.4g}') for x in self[name].tolist()]}" for name in self)
        return f"Readings({', '.join(each)})"

    def settle(self) -> None:
        """Average now what would be averaged at reading: the memory is about to be used again."""
        self.raw, self.shared = {name: self[name] for name in self.raw}, False

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)
