"""Budgets of non-zeros: which coefficients each row keeps, and how many, with no penalty in between.

    minimise  sum_i weight_i ||z_i - W^T w_i||^2   s.t.  sum_i ||w_i||_0 <= K

``elimination`` gives each row its supports of every size, ``convex`` does the same by convex problems, ``search`` says which of them is
asked for; ``curves`` is what each size costs, ``allocation`` gives the sizes.
"""
