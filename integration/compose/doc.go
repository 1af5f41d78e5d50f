// Package compose holds what is in the folder compose/ to its word, on a machine without a container engine: the files
// are read by the Compose specification's own loader, the front's configuration by nginx, the alert rules by promtool;
// and the very programs that the image holds are started with the very environment that the files give them, on three
// real brokers where the file says three.
//
// What is not shown: that the images can be pulled and built, and what a container engine adds (its network, its
// read-only file systems, its users).
package compose
