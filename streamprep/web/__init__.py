"""The dashboard: a web server of its own process that shows a session by reading what the session wrote, nothing else.

It needs the extra ``web``. `streamprep.web.server.serve` runs it; the command line loads that by name.
"""
