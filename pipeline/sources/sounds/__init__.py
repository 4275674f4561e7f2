"""The reader of sounds: decoding, resampling, windows, and whether a file is whole."""
