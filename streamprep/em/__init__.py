"""The field's mathematics, without I/O. Making a filter stands apart from applying it."""
