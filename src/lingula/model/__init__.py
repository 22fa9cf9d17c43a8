"""The model: encoders, class embeddings, network, devices; weights in and out."""
