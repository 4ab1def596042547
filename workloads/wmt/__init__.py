"""Translation from German to English (WMT)."""
