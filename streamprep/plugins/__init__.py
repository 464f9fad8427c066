"""The built-in operations, one per file, written and loaded as a third party's would be."""
