"""The commands of manage.py: picoqmail_status and picoqmail_retry."""
