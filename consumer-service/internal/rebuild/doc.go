// Package rebuild fills the tables anew from the log while the old ones serve, proves that the two are
// the same, and puts the new ones in their place.
//
// # States of a generation
//
//	               ┌────────── cancel, drop ─────────► dropping ──► gone
//	               │
//	filling ──► indexing ──► ready ── proof, swap ──► serving ◄──► swapping
//	   │                                                 │
//	   └─ its point is reached ──► held                  └── swap ──► standby (and back by a swap)
//
// One generation is serving or swapping, and its tables are in public. Every other one has a schema of its
// own. The states from filling to standby are fed: each consumer-service runs a lane for them, a member of
// a consumer group of their own with a projector behind it. A lane follows the state and decides nothing.
//
// # The driver
//
// One process at a time drives: the one that holds an advisory lock of the session on a connection of its
// own. The lock is a courtesy. Each step takes the generation's row, looks at its state and changes both in
// one transaction, so two drivers would do no harm, and whatever was half done is found as it was left.
//
// # The swap
//
// Fence first, then move. To lock the progress and rename is not enough: a statement of the old writer that
// waits for the lock would go on in the new tables.
//
//	(a) the serving generation is marked swapping, it and its progress get a new epoch: its writers are
//	    fenced, find the mark and wait
//	(b) the side has a second to reach the offsets that are frozen now
//	(c) one transaction locks all moved tables in the fixed order, moves them both ways, flips the states
//	    and gives both sides fresh epochs
//
// If (b) or (c) fails the mark is taken back and the writers go on. Nobody waits longer than (c)'s half a
// second for a lock. A mark that is older than five seconds is anybody's to take back. After (c) the
// writers find that the progress in public is at or past their own, and go on there in the same session.
//
// # Locks
//
// Rows of generations in the order of their numbers, then progress rows in the order of partitions, then
// tables in the order of Moved, public before the side. Readers lock the first three of Moved, in that
// order. An audit is waited for before (a): it reads for longer than a swap would wait.
package rebuild
