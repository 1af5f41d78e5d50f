// Package generation fills a projection's tables anew from the log while the old ones serve, proves that the two are the
// same, and puts the new ones in their place. Each projection has generations of its own.
//
// # States of a generation
//
//	queued ──► filling ──► indexing ──► ready ── proof, swap ──► serving ◄──► swapping
//	              │                                                 │
//	              └─ its point is reached ──► held                  └── swap ──► standby (a rollback swaps it back)
//
//	any of them but serving and swapping ── cancel, drop ──► dropping ──► gone
//
// A generation that is filled from a topic that was made anew, and accepted, is swapped in without a proof; the one that
// served before is then held (see newlog.go).
//
// One generation is serving or swapping, and its tables are in the projection's own schema. Every other one is a
// candidate or a standby and has a schema of its own. The states from filling to standby are written: each process that
// runs the projection has a worker for them, a member of a consumer group of their own with a projector behind it. A
// worker follows the state and decides nothing. A queued generation has no tables yet: it waits until no other projection
// is being rebuilt.
//
// # The driver
//
// One process at a time drives the generations of a projection: the one that holds an advisory lock of the session on a
// connection of its own. The lock is a courtesy. Each step takes the generation's row, looks at its state and changes both
// in one transaction, so two drivers would do no harm, and whatever was half done is found as it was left.
//
// # The swap
//
// Fence first, then move. To lock the progress and rename is not enough: a statement of the old writer that
// waits for the lock would go on in the new tables.
//
//	(a) the serving generation is marked swapping, it and its progress get a new epoch: its writers are
//	    fenced, find the mark and wait
//	(b) the candidate has a second to reach the offsets that are frozen now
//	(c) one transaction locks all moved tables in the fixed order, moves them both ways, makes the projection's views
//	    anew, flips the states and gives both generations fresh epochs
//
// If (b) or (c) fails the mark is taken back and the writers go on. Nobody waits longer than (c)'s half a
// second for a lock. A mark that is older than five seconds is anybody's to take back. After (c) the
// writers find that the progress in the serving schema is at or past their own, and go on there in the same session.
//
// # Locks
//
// Rows of projection_generations in the order of projection and number, then progress rows in the order of partitions,
// then tables in the order of Definition.All, the serving ones first. Readers lock in that order too. An audit is waited
// for before (a): it reads for longer than a swap would wait.
package generation
