"""The doctor as a user calls it: is the machine ready, how much memory will a run take."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import o2o_smooth
from o2o_smooth.checkup import PACKAGES, SECRETS, VARIABLES, cpu_info, precision_advice, without_password
from o2o_smooth.cli import main

RUN = ["--task", "Pendulum-v1", "--agent", "cql", "--seeds", "0", "1", "--dataset", "absent.npz"]
RUN += ["--buffer-size", "1000"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the user's datasets."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def status(found: dict[str, Any], name: str) -> str:
    (check,) = (c for c in found["checks"] if c["name"] == name)
    return str(check["status"])


def test_a_sound_machine_is_told_line_by_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for name in ("python", "torch", "C compiler", "native kernels", "precision", "gymnasium", "memory", "scratch"):
        assert re.search(rf"(ok|missing|warning) +{name} ", text), name
    assert str(folder) in text
    assert main(["doctor", "--json"]) == 0
    found = told(capsys)
    assert found["ok"]
    assert status(found, "numpy") == "ok"
    assert not any((folder / name).exists() for name in ("minari", "d4rl", "runs"))


def test_keys_and_passwords_are_never_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "hush-hush")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:hush-hush@mirror.example/hf")
    for options in ([], ["--json"]):
        main(["doctor", *options])
        text = capsys.readouterr().out
        assert "hush-hush" not in text
        assert "not shown" in text
        assert "mirror.example/hf" in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("https://a:b@c.d:80/e?f", "https://***@c.d:80/e?f"),
        ("https://c.d/e", "https://c.d/e"),
        ("user@host", "user@host"),
        ("http://[broken", "http://[broken"),
    ],
)
def test_addresses_lose_their_passwords(value: str, shown: str) -> None:
    assert without_password(value) == shown


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("O2O_SMOOTH_DATA_GIB", "plenty", "expected a number of GiB"),
        ("O2O_SMOOTH_SCRATCH", "/absent/folder", "there is no such folder"),
        ("O2O_SMOOTH_TASKS", "/absent/tasks.toml", "/absent/tasks.toml"),
    ],
)
def test_a_variable_that_would_stop_a_run_is_broken(
    name: str, value: str, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    assert main(["doctor", "--json"]) == 1
    found = told(capsys)
    assert not found["ok"]
    assert status(found, name) == "broken"
    assert text in next(c["text"] for c in found["checks"] if c["name"] == name)


def test_a_missing_package_is_missing_and_a_needed_one_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = PACKAGES
    absent = [("absent_a", "absent-a", "wishes", "pip install a"), ("absent_b", "absent-b", "life", None)]
    monkeypatch.setattr("o2o_smooth.checkup.PACKAGES", (*known, *absent))
    assert main(["doctor", "--json"]) == 1
    found = told(capsys)
    assert (status(found, "absent-a"), status(found, "absent-b")) == ("missing", "broken")


def test_every_variable_of_ours_is_told() -> None:
    root = Path(o2o_smooth.__file__).parent
    sources = "\n".join(path.read_text(encoding="utf-8") for path in root.rglob("*.py"))
    read = set(re.findall(r"\"(O2O_SMOOTH_[A-Z_]+)\"", sources)) | set(re.findall(r"environ\.get\(\"(\w+)\"", sources))
    between = {"O2O_SMOOTH_ATTEMPT", "O2O_SMOOTH_KEEPER"}  # from one process to another
    assert {name for name in read - between if not name.startswith("SLURM_")} <= set(VARIABLES)  # Slurm's: in its jobs


def test_bf16_is_advised_where_it_pays() -> None:
    amx, avx = frozenset({"avx512f", "avx512_bf16", "amx_bf16"}), frozenset({"avx512f", "avx512_bf16"})
    assert "bf16 matmuls pay" in precision_advice(amx, "blas")
    assert "2 times as fast" in precision_advice(avx, "dots")
    assert "gcc 10" in precision_advice(avx, "rounded")
    assert "native kernels" in precision_advice(avx, None)
    assert "CPU: fp32; without units" in precision_advice(frozenset({"avx2"}), "rounded")
    assert "GPU 8.0: bf16 pays" in precision_advice(avx, "dots", (8, 0))
    assert "GPU 7.5: fp32" in precision_advice(avx, "dots", (7, 5))


def test_the_processor_is_read_from_its_description(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A Chip\nflags\t\t: fpu avx2 amx_bf16\n\n")
    assert cpu_info(tmp_path) == (frozenset({"fpu", "avx2", "amx_bf16"}), "A Chip")
    assert cpu_info(tmp_path / "absent") == (frozenset(), "")


# A run


def test_a_run_s_memory_is_told_part_by_part(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *RUN]) == 0
    text = capsys.readouterr().out
    assert "2 x 1,000 rows of 11 floats" in text
    assert re.search(r"peak +[\d.]+ [MG]iB", text)
    assert "fits" in text
    assert main(["doctor", "--json", *RUN]) == 0
    found = told(capsys)
    at_peak = [p["host"] for p in found["parts"] if found["host"]["moment"] in p["moments"]]
    assert sum(at_peak) == found["host"]["peak"]
    assert not found["dataset_known"]
    assert list(folder.iterdir()) == []


def test_a_config_file_is_a_run_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "study.toml").write_text(
        'task = "Pendulum-v1"\nagent = "td3_bc"\nseeds = [1, 2, 3]\nbuffer_size = 5000\n'
    )
    assert main(["doctor", "--config", "study.toml"]) == 0
    assert "3 x 5,000 rows" in capsys.readouterr().out


def test_what_does_not_fit_is_told_with_what_helps(capsys: pytest.CaptureFixture[str]) -> None:
    huge = [*RUN, "--buffer-size", str(10**11), "--online-steps", str(10**11)]
    assert main(["doctor", *huge]) == 1
    text = capsys.readouterr().out
    assert "does not fit" in text
    assert re.search(r"--buffer-size \d+ +saves [\d.]+ GiB, which is enough", text)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--buffer-sizes", "3"], "did you mean --buffer-size?"),
        (["--agent", "dqn"], "there is no agent 'dqn'"),
        (["--task", "hoper-medium-v2"], "hopper-medium-v2"),
        (["--task", "Pendulum-v1", "--device", "tpu"], "device 'tpu'"),
        (["--jsn"], "unknown option --jsn"),
    ],
)
def test_bad_options_are_one_line(options: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *options]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_help_says_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--help"]) == 0
    text = capsys.readouterr().out
    assert "RUN-OPTIONS" in text
    assert "--no-memory-check" in text
    assert main([]) == 0
    assert "doctor" in capsys.readouterr().out


def test_the_room_that_a_run_takes_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--task", "Pendulum-v1", "--agent", "sac", "--offline-updates", "0", "--schedule", "jump"]
    main(["doctor", "--json", *run, "--online-steps", "1000", "--buffer-size", "1000"])
    disk = told(capsys)["disk"]
    assert disk["needed"] == sum(part["size"] for part in disk["parts"]) > 0 and disk["free"] > 0
    (rows,) = (part["size"] for part in disk["parts"] if part["name"] == "replay rows in resume/")
    assert rows == 4 * 1000 * (3 + 3 + 1 + 4)
    main(["doctor", *run, "--no-save-checkpoints"])
    text = capsys.readouterr().out
    assert "disk: about " in text and "are free where runs/Pendulum-v1-sac-jump is" in text and "resume/" not in text
