"""One benchmark a module: its options, its rows, how they are measured, and the table made of them."""
