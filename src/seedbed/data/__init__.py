"""The token store and the rows cut from it: everything here is a pure function of where you are."""
