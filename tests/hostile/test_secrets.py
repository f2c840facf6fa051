"""Secrets never land in a run's files or on the terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import o2o_smooth
from o2o_smooth.cli_options import command_line
from o2o_smooth.redaction import HIDDEN, one_line, redacted, redacted_values, redacted_words, secrets_of
from o2o_smooth.training.tracking import LocalFiles

KEY = "0123456789abcdef0123456789abcdef01234567"
OTHER = "wandb_v1_Zm9vYmFyYmF6cXV4Zm9vYmFy"
WORD = "correct-horse-battery"
NONE: dict[str, str] = {}


@pytest.mark.parametrize(
    "text",
    [
        f"https://user:{WORD}@host/x",
        f"hf://{WORD}@host/x",
        f"see https://api.host/x?token={WORD}&y=1",
        f"--api-key={WORD}",
        f"WANDB_API_KEY={WORD}",
        f'{{"password": "{WORD}"}}',
        f"password: {WORD}",
        f"Authorization: Bearer {WORD}",
        OTHER,
        f"local-{KEY}",
        "hf_" + "a1B2" * 8,
        "ghp_" + "a1B2" * 9,
        "AKIA" + "A1B2" * 4,
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str) -> None:
    shown = redacted(text, NONE)
    assert HIDDEN in shown
    assert all(secret not in shown for secret in (WORD, OTHER, KEY, "a1B2", "A1B2"))


@pytest.mark.parametrize(
    "text",
    [
        "o2o-smooth run --task hopper-medium-v2 --schedule linear:5000 --out runs/token-study",
        "https://github.com/Farama-Foundation/Minari",
        "8 tokens; the password is not asked for; secretary",
        "runs/a@b/c user@host:path",
        "D4RL/door/human-v2",
        f"commit {KEY}",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert redacted(text, NONE) == text


def test_values_of_secret_variables_are_hidden_wherever_they_stand() -> None:
    environment = {
        "WANDB_API_KEY": KEY,
        "HF_TOKEN": WORD,
        "MY_DB_PASSWORD": "longer-" + WORD,
        "SHORT_TOKEN": "abc",
        "TOKENIZERS_PARALLELISM": "falsefalse",
        "SSH_AUTH_SOCK": "/tmp/ssh-agent",
        "SECRET_KEY_FILE": "/etc/keys/one",
        "PATH": "/usr/bin:/usr/local/bin",
    }
    assert secrets_of(environment) == [KEY, "longer-" + WORD, WORD]
    assert redacted(f"a {KEY} longer-{WORD} {WORD} abc falsefalse", environment) == "a *** *** *** abc falsefalse"


def test_words_of_a_command_are_hidden() -> None:
    words = ["o2o-smooth", "run", "--api-key", "x1", "--out", "runs/x", KEY, "--token", "--wandb"]
    assert redacted_words(words) == [
        "o2o-smooth",
        "run",
        "--api-key",
        HIDDEN,
        "--out",
        "runs/x",
        HIDDEN,
        "--token",
        "--wandb",
    ]


def test_a_manifest_is_written_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    files = LocalFiles(tmp_path)
    files.write_manifest({"a": [{"b": f"x {KEY}"}], "source": f"https://u:{WORD}@h/d", "n": 1})
    assert json.loads((tmp_path / "manifest.json").read_text()) == {
        "a": [{"b": "x ***"}],
        "source": "https://***@h/d",
        "n": 1,
    }
    files.close("completed")
    assert redacted_values(["x"]) == ["x"]
    assert KEY not in one_line(f"failed with {KEY}")


SECRETS = {
    "WANDB_API_KEY": KEY,
    "HF_TOKEN": "hf_" + "Zz9Yy8Xx7" * 4,
    "MY_PASSWORD": "swordfish-swordfish",
}
NETRC = "netrc0123456789abcdef0123456789abcdef012"
IN_URL = "hunter2hunter2"
AS_WORD = "fedcba9876543210fedcba9876543210fedcba98"


def test_a_run_logged_to_wandb_keeps_no_secret(made: Path, tmp_path: Path) -> None:
    """Every file of the run's folder and of the home folder, and both streams, of a run as a user starts it."""
    pytest.importorskip("wandb")
    home, out = tmp_path / "home", tmp_path / "run"
    home.mkdir()
    (home / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {NETRC}\n")
    (home / ".netrc").chmod(0o600)
    environment = {
        **os.environ,
        **SECRETS,
        "HOME": str(home),
        "WANDB_MODE": "offline",
        "WANDB_BASE_URL": f"https://user:{IN_URL}@wandb.example",
        "O2O_SMOOTH_KERNELS": "0",
    }
    arguments = [
        *("run", "--task", "Pendulum-v1", "--dataset", str(made / "pendulum.npz"), "--seeds", "3"),
        *("--hidden-dims", "8", "8", "--batch-size", "8", "--offline-updates", "3", "--online-steps", "6"),
        *("--eval-episodes", "1", "--switch-episodes", "2", "--eval-envs", "1", "--wandb", "--out", str(out)),
    ]
    # As a script that a user wraps around the command would: a key among its words.
    code = "import sys; from o2o_smooth.cli import main; n = sys.argv.index('--'); sys.exit(main(sys.argv[n + 1 :]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "--api-key", AS_WORD, "--", *arguments],
        capture_output=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    files = [file for file in (*out.rglob("*"), *home.rglob("*")) if file.is_file() and file.name != ".netrc"]
    logged = [file for file in files if "offline-run" in str(file)]
    assert logged, f"W&B has logged nothing: {done.stderr.decode()}"
    hidden = (*SECRETS.values(), NETRC, IN_URL, AS_WORD)
    for name, content in {
        **{str(file): file.read_bytes() for file in files},
        "out": done.stdout,
        "err": done.stderr,
    }.items():
        for secret in hidden:
            assert secret.encode() not in content, f"{secret} in {name}"
    command = json.loads((out / "manifest.json").read_text())["command"]
    assert command[1:3] == ["--api-key", HIDDEN] and "--seeds" in command


def test_a_project_that_is_a_secret_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from o2o_smooth.errors import ConfigError
    from o2o_smooth.training.tracking import open_sinks

    monkeypatch.setenv("MY_PASSWORD", WORD)
    for project in (WORD, f"https://u:{IN_URL}@h", OTHER):
        with pytest.raises(ConfigError, match="looks like a secret") as caught:
            open_sinks(tmp_path / "run", name="x", config={}, seeds=(0,), wandb=True, project=project)
        assert project not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_error_shows_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from o2o_smooth.cli import main

    monkeypatch.setenv("MY_PASSWORD", WORD)
    assert main(["run", "--dataset", f"https://user:{IN_URL}@host/{WORD}.hdf5", "--task", "Pendulum-v1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and IN_URL not in error and WORD not in error


def test_commands_that_are_written_down_hold_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PASSWORD", WORD)
    told = command_line("fork", ["runs/x", "--wandb-project", WORD, "--api-key", KEY, "--dataset", "a b"])
    assert told == "o2o-smooth fork runs/x --wandb-project '***' --api-key '***' --dataset 'a b'"
    commands = Path(o2o_smooth.__file__).parent.glob("cli*.py")
    assert not [file for file in commands if file.stem != "cli_options" and "shlex.join" in file.read_text()]
