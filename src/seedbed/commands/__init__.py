"""One file per verb: config in, artifact out. Here everything is assembled; heavy imports happen when a verb runs."""
