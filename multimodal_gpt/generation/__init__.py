"""From a trained model to ids, and from ids to documents and files."""
