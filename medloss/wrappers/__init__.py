"""What takes a loss and is one: sums with weights, deep supervision, a fixed spacing."""
