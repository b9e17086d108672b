"""The asyncio client of the `tableforge.v1` protocol."""
