"""Work that the window waits for without freezing."""
