"""picoqmail: send-only mail for one host."""
