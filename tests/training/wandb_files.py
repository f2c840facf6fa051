"""Reading back what W&B wrote without a network, and a home for it that is not the user's."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

OF_WANDB = ("API_KEY", "DIR", "RUN_ID", "CACHE_DIR", "CONFIG_DIR", "ENTITY", "PROJECT", "BASE_URL")


@contextlib.contextmanager
def offline_wandb(home: Path) -> Iterator[pytest.MonkeyPatch]:
    """W&B without network or account, at home in a folder."""
    wandb = pytest.importorskip("wandb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("HOME", str(home / "home"))
        patch.chdir(home)
        for name in (*(f"WANDB_{name}" for name in OF_WANDB), "XDG_CACHE_HOME"):
            patch.delenv(name, raising=False)
        wandb.teardown()  # settings of an earlier test
        yield patch
        wandb.teardown()


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of an offline run: a LevelDB log (blocks of 32 KiB, records in pieces) of protobuf messages."""
    from wandb.proto import wandb_internal_pb2 as messages

    data, block = file.read_bytes(), 32 * 1024
    assert data[:4] == b":W&B"
    at, piece = 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:  # too little for a header: padding
            at += block - at % block
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        piece += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = messages.Record()  # type: ignore[attr-defined]
            record.ParseFromString(piece)
            piece = b""
            yield record


def history(file: Path) -> list[dict[str, Any]]:
    """Every row that was logged."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in wandb_records(file)
        if record.WhichOneof("record_type") == "history"
    ]


def summary(file: Path) -> dict[str, Any]:
    """The summary as it stands at the end."""
    found: dict[str, Any] = {}
    for record in wandb_records(file):
        if record.WhichOneof("record_type") == "summary":
            found |= {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.summary.update
            }
    return found
