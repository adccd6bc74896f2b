"""For developers: what measures, draws and tries the project itself."""
