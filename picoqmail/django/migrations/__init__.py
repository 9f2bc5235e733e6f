"""The schema of picoqmail as migrations of Django: one for each numbered SQL file, of its name."""
