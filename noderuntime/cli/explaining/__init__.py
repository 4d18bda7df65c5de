"""What ``noderuntime explain`` finds out, and how it shows it."""
