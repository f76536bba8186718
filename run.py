"""The one command: python run.py VERB. See python run.py --help for the verbs.

Only the version check happens here, in words that any Python understands; the rest is in standalone/setup.
"""

import sys

if __name__ == "__main__":
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        sys.exit(
            "This needs Python 3.10, 3.11 or 3.12, and it was started with Python %d.%d. "
            "Install one of those and start it with that one, for example: python3.11 run.py" % sys.version_info[:2]
        )
    from standalone.setup.start import main

    sys.exit(main(sys.argv[1:]))
