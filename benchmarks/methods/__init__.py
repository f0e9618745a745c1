"""Methods of adapting a model, compared on the data that ships."""
