"""`python -m personainfer.testing`: serve the fake model from a process of its own."""

from .fake_llm import main

main()
