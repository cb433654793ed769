"""A user's own objective and constraint set: SIM's f and C in (2) and (7).

Read in this order: objective (what a function must return), solve (its rows by a cone solver), proof (how far a stored
row is from optimal).
"""
