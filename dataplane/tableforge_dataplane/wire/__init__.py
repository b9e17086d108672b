"""Bytes on a socket: frames out, frames in, and who gets past the handshake."""
