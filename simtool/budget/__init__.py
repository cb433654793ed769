"""Budgets of non-zeros: which coefficients each row keeps, and how many, with no penalty in between.

    minimise  sum_i weight_i ||z_i - W^T w_i||^2   s.t.  sum_i ||w_i||_0 <= K

``elimination`` gives each row its supports of every size, ``curves`` what each size costs, ``allocation`` the sizes.
"""
