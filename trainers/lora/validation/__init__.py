"""What a validation is made of: which examples, what is measured on them, and where."""
