"""A coverage-guided fuzzer for everything that reads a file.

``mutations`` changes bytes, ``formats`` changes a file as its own format sees it (so that checksums hold again), ``targets`` names the
readers, their seeds (real files, made by the product) and what a right answer is, ``worker`` runs inputs in a process with limits, and
``driver`` starts workers and collects findings. ``python tests/fuzzing TARGET FILE`` runs one input again.
"""
