__version__ = "0.50.2"
