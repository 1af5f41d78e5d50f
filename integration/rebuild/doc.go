// Package rebuild tells the stories of a rebuild while another generation serves, on real servers: that nobody notices it, that its
// proof is real, and that nothing holds up its swap. Package fault kills its processes.
package rebuild
