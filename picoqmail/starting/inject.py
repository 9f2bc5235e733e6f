"""The compiled file of this name holds the modules of picoqmail-inject (bundle.py)."""
