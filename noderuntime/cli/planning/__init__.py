"""What ``noderuntime plan`` finds out, and how it shows it."""
