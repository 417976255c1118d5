"""The command line: one command a file, errors as sentences, rich only for decoration.

Nothing here imports NumPy, Numba or tokenizers before a command's body runs.
"""
