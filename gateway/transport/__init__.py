"""The sockets towards providers."""
