"""The board: a local web page over one training run or many, live."""
