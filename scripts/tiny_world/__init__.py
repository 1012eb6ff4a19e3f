"""What builds and measures the world of the quick start; the world itself is ``selfreward.tiny``."""
