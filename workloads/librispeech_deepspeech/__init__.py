"""Speech recognition by bidirectional LSTMs (LibriSpeech)."""
