"""``cowest table``: every system of the paper's comparison, on the same queries, sharing what it can.

plan.py -> run.py (units, variants, rows) -> results.py (statistics) -> write.py, plots.py
"""
