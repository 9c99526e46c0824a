"""Where pixels are: panels in the laboratory, and the files that say so."""
