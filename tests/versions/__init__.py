"""Studies as older versions stored them, and the script that made them."""
