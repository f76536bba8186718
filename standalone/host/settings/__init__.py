"""Settings: what each may be, the table of those that this host has, and their values."""
