"""The compiled file of this name holds what is needed once there is mail to send (bundle.py)."""
