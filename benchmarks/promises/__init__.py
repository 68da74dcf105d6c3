"""Attacks on what is promised, by subject. `benchmarks/attacks.py` runs them."""
