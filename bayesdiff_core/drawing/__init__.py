"""Images for people, drawn with Pillow alone: ``sheets`` of images with captions, and ``plots``."""
