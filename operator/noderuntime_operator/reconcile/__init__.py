"""Every decision of the operator as pure functions: what is observed → what to write. No I/O in here."""
