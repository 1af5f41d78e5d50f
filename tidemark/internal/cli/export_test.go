package cli

// NewRoot is the command line itself, for the page that is made from it.
var NewRoot = newRoot

// UsualDataDir is the data directory of a user and a system.
var UsualDataDir = usualDataDir
