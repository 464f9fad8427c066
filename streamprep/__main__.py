"""``python -m streamprep`` is ``streamprep``."""

from streamprep.cli import main

main()
