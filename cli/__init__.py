"""The programs: each parses its arguments, calls one function and returns its exit code."""
