"""Set-up before anything is installed: options, the virtual environment, the pinned packages.

Everything in this package runs with the standard library alone, on the Python that the user happens to have.
"""
