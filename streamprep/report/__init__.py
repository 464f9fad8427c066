"""Pictures and the report of a session: derived from what is committed, made beside the daemon, and disposable.

``python -m streamprep.report`` is the process that the daemon starts (`streamprep.sinks.pictures`); `streamprep report`
runs the same code. Neither takes a lock of the session, opens the ledger, or writes anything but ``gallery/`` and
``report.html``.
"""
