"""A name for each bundle, which lies where the compiled file of that module would (bundle.py).

No code may live here, and nothing imports these. They are for installers: what removes a module
removes its compiled file too, and so no bundle outlives the package.
"""
