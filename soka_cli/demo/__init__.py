"""The demo: a small base model, the generator of its task and of its training text. See README.md beside this file."""
