"""What the table says: phases, laws, limits, predictions, all with their intervals."""
