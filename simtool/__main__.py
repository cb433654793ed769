"""``python -m simtool``."""

from simtool.cli import main

main(prog_name="simtool")
