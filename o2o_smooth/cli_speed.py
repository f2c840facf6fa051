"""The command `o2o-smooth speed`: how fast the learner is on this machine."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from o2o_smooth.cli_options import parse

EXAMPLES = """\
examples:
  o2o-smooth speed                                                   # about three minutes on two cores
  o2o-smooth speed --quick                                           # does it work at all?
  o2o-smooth speed --agents iql cql td3_bc --precision fp32 bf16 --members 1 4 --threads 2 --json speed.json
  o2o-smooth speed --peers-python ~/peers/bin/python                 # beside d3rlpy and JAX in another environment
  o2o-smooth speed --grow batch width members utd buffer --agents iql --precision fp32

What is measured, and what the limit means: docs/speed.md"""


def speed(arguments: list[str]) -> int:
    """Run the benchmark; returns the exit code.

    Raises:
        O2OError: Bad input, or nothing could be measured.
    """
    from rich.console import Console

    from o2o_smooth.benchmarks import speed as benchmark
    from o2o_smooth.benchmarks.speed_report import into_document, markdown, report
    from o2o_smooth.training.progress import show_progress

    config = parse(benchmark.SpeedConfig, benchmark.SpeedConfig(), arguments, "o2o-smooth speed", EXAMPLES)
    home = str(Path.home())
    shown = [f"~{word.removeprefix(home)}" if word.startswith(f"{home}/") else shlex.quote(word) for word in arguments]
    command = " ".join(["o2o-smooth speed", *shown])
    with show_progress() as progress:
        result = benchmark.speed(config, command, progress)
    console = Console(emoji=False)
    if not console.is_terminal:  # tables in a file or a pipe keep their columns
        console = Console(width=120, emoji=False)
    console.print(report(result), highlight=False)
    if config.json is not None:
        benchmark.write_text(json.dumps(result, indent=1) + "\n", Path(config.json))
        console.print(f"numbers: {config.json}", highlight=False, markup=False, soft_wrap=True)
    if config.markdown is not None:
        path = Path(config.markdown)
        document = path.read_text(encoding="utf-8") if path.is_file() else ""
        benchmark.write_text(into_document(markdown(result), result, document), path)
        console.print(f"tables:  {config.markdown}", highlight=False, markup=False, soft_wrap=True)
    if config.picture is not None:
        from o2o_smooth.benchmarks.speed_picture import draw  # matplotlib is slow to import

        if draw(result, Path(config.picture)):
            console.print(f"picture: {config.picture}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"took {result['took_s']:.0f} s", highlight=False)
    return 0 if result.get("rows", True) else 1
