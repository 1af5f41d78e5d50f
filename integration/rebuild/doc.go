// Package rebuild tells the stories of a rebuild beside what serves, on real servers: that nobody notices
// it, that its proof is real, and that a process which is killed at any step of it leaves either the old or
// the new tables serving, never a mixture.
package rebuild
