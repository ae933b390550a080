"""The emoji data set: drawings, captions and composed scenes."""
