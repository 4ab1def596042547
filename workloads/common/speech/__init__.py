"""What the speech families share: LibriSpeech, features, layers, loss and metric."""
