"""Speech recognition by a Conformer (LibriSpeech)."""
