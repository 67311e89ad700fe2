"""Bridges to other libraries' own interfaces."""
