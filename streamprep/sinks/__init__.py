"""Where results go. Each sink is a plugin; `_files` is the only module that makes files durable."""
