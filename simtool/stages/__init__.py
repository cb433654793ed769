"""Stages: the verbs of simtool. They join the mathematics with the files, networks and engines."""
