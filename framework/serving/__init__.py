"""A trained model behind HTTP: chat with images, driving scenes, health, metrics, and a page for people."""
