"""Benchmarks: the row solver beside its peers, at equal certified accuracy, in one process and one thread.

Nothing else in simtool imports this part. Peers that are not installed, do not converge or cannot pose a problem stay
in the tables with their reason.
"""
