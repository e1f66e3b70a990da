"""Reports to read and to see: the only rooms that import matplotlib and jinja2."""
