"""One run: its loop, its folder, and the model that it trained."""
