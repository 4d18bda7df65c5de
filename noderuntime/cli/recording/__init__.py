"""What ``noderuntime record`` sees of a Pod that runs, and the profile that it makes of it."""
