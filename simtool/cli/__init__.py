"""The command line: it parses and prints; the stages do the work. Commands are imported only when called."""

from __future__ import annotations

import importlib
import json
from typing import Any

import click

from simtool import __version__

COMMANDS = {
    "demo": "The whole path on the digits data, in under a minute.",
    "inspect": "What a network, states, run or model file holds.",
    "extract": "Run a network over data and store its states.",
    "sparsify": "Solve one convex problem per row: states to a sparse implicit model.",
    "status": "Where a run stands.",
    "resume": "Go on with a run that was interrupted.",
    "cancel": "Stop a run; what is finished is kept.",
    "work": "One part of a run, for batch systems.",
    "evaluate": "Accuracy, sparsity and robustness of a model, as a report.",
    "predict": "Outputs of a model on data.",
    "export": "A model, or its network with sparse weights, for other runtimes.",
    "convert": "The exact implicit form of a network.",
    "compact": "The same model without states that nothing needs.",
    "sweep": "Grids of options on the same states: tables and pictures of what they trade.",
    "bench": "Speed, engines, inference and quality beside other tools, on this machine.",
}


class _LazyGroup(click.Group):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["json"] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """With --json, options that cannot be parsed are one JSON object too."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            if not ctx.meta["json"]:
                raise
            click.echo(json.dumps({"error": error.format_message(), "exit": error.exit_code}))
            ctx.exit(error.exit_code)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"simtool.cli.{cmd_name}").command
        command.name = cmd_name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Start with: simtool demo",
)
@click.version_option(__version__, prog_name="simtool")
def main() -> None:
    """Turn a trained network into a sparse, certified implicit model without retraining it."""
