"""What the reference is made of and how: ``./dev docs`` writes it, ``./dev docs --check`` compares.

A new document is a function of no arguments to its text, in the table of ``__main__``.
"""
