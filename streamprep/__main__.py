"""``python -m streamprep`` is ``streamprep``."""

from streamprep.cli import main

if __name__ == "__main__":
    main()
