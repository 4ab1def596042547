"""What a trained model costs to run: decoder, profiler, idealized runtime, costs."""
