"""Taking the time: one cell, a session of cells, the device, the machine around it."""
