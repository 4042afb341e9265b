"""Where what was measured is booked: accounts, settlement. Integers only; every movement has two sides."""
