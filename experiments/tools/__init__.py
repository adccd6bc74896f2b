"""For developers: commands that measure, draw and test the project itself."""
