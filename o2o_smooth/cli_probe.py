"""The command `o2o-smooth probe`: the score along the line between two checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from o2o_smooth.cli_options import command_line, parse
from o2o_smooth.errors import O2OError

if TYPE_CHECKING:
    from rich.console import Console

    from o2o_smooth.benchmarks.probe import Probe

EXAMPLES = """\
examples:
  o2o-smooth probe runs/x                               # from the switch of a run to its end
  o2o-smooth probe runs/study/jump runs/study/stay      # from the switch of one arm to the end of another
  o2o-smooth probe runs/a/checkpoints/final runs/b/checkpoints/final --points 21 --episodes 50 --out runs/a-to-b

A valley says that the two policies solve the task in different ways: an average of them is worse than both. Whether a
point between is better than both is said, too. Lines between policies of different pretrainings mean little: take forks
of one checkpoint."""


def probe(arguments: list[str]) -> int:
    """Probe the line between two checkpoints; returns the exit code.

    Raises:
        O2OError: Bad input.
    """
    import torch
    from rich.console import Console

    from o2o_smooth.benchmarks import probe as probing
    from o2o_smooth.training.progress import show_progress

    count = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    ends, options = [Path(word) for word in arguments[:count]], arguments[count:]
    wants_help = any(option in ("-h", "--help") for option in options)
    prog = "o2o-smooth probe" + (" (RUN | A B)" if wants_help else "")
    config = parse(probing.ProbeConfig, probing.ProbeConfig(), options, prog, EXAMPLES)
    if not 1 <= len(ends) <= 2:
        raise O2OError(
            f"probe takes a run folder or two checkpoints before its options, got {len(ends)}; o2o-smooth probe --help "
            f"shows how it goes"
        )
    second = ends[1] if len(ends) == 2 else None
    folder = probing.folder_for(probing.find_final(second or ends[0]), config)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        with show_progress() as progress:
            found = probing.probe(ends[0], second, config, progress)
    finally:
        torch.set_num_threads(threads)
    probing.write_probe(found, folder, command_line("probe", arguments))
    console = Console(emoji=False)
    _show(console, found)
    for name, file in (("numbers", probing.PROBE), ("picture", probing.PICTURE)):
        console.print(f"{name}: {folder / file}", highlight=False, soft_wrap=True, markup=False)
    return 0


def _show(console: Console, found: Probe) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("Way", found.unit.capitalize(), "±", "Lowest seed", "Highest seed"):
        table.add_column(header, justify="right")
    seeds = found.scores.mean(axis=2)
    for i, share in enumerate(found.way.shares):
        numbers = (found.way.scores[i], found.way.errors[i], seeds[i].min(), seeds[i].max())
        table.add_row(f"{share:g}", *(f"{number:.1f}" for number in numbers))
    console.print(table)
    console.print("±: standard error over episodes. 0: " + f"{found.first}, 1: {found.second}", markup=False)
    for text in (found.way.sentence(), found.way.best()):
        console.print(text[0].upper() + text[1:] + ".", highlight=False, markup=False)
