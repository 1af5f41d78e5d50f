// Package projection turns the log into tables, exactly once, and can be asked whether it did.
//
// # One writer a partition, by fence
//
// Every partition has a progress row (epoch, next_offset, …). A batch of records is one statement and so
// one transaction: it moves the progress row from the end of the batch before to its own end, and every
// insert of the statement reads from that update. A writer whose epoch or offset is no longer the row's
// updates nothing and therefore inserts nothing, however long it slept between reading and sending. It
// does not matter who Kafka thinks the owner is, nor what was committed there: no fence, no row.
//
//	batch ──► fast write ──► done: acknowledge
//	             │  unique violation, or a record that Postgres refuses
//	             ├─────────► slow write: the rule for one id in two records, dead letters by bisection
//	             │  no progress row matched
//	             ├─────────► fenced: read epoch and progress again
//	             │             same epoch, progress ahead   drop what is below it, try the rest
//	             │             same epoch, progress behind  end the session, seek anew
//	             │             a swap is under way          wait, read again
//	             │             other epoch, not behind      go on under it (a swap)
//	             │             other epoch, behind          end the session (it was started over)
//	             │             other group name             stop for good
//	             │  anything else
//	             └─────────► the database is away: hold the claim, back off, say so, try again
//
// # Epochs
//
// An epoch counts how often the generation was started over: by a new group name, or by Kafka's own
// offset reset. Starting over is one transaction under the generation row's lock: a new epoch and zero
// progress for every partition. It fences every writer of the epoch before. Rows stay and are recognised
// as their own records' when these come again; dead letters go, since the code may have learned to read
// them. What was decided on a dead letter is known before a session projects anything, and holds: its
// record is rejected again, whatever the code could do with it.
//
// # Receipts
//
// Each batch, and each range of offsets that is booked as skipped, leaves a receipt in the outbox, in the
// statement that moves the fence and reading from it.
//
// # Generations
//
// A projector is that of the generation that serves, whose tables are in public, or of one at its side
// (Options.Side), which has a schema and a consumer group of its own. The latter decides nothing: package
// rebuild makes it, proves it, and swaps it in by moving tables under writers that it has fenced before. A
// swap gives both sides fresh epochs, and leaves the progress in public at or past what its writers have
// written, so their claims go on in the tables that are there now.
//
// # One id, two records
//
// Of all records with one id, the one with the lowest (created_at, partition, offset) is the row. It is
// applied, the others are duplicates. The rule does not depend on the order of reading, so every replay
// gives the same rows and the same counts.
//
// # Locks
//
// A fast write holds its own progress row, then inserts in the order of ids. A slow write locks its own
// progress row first; where it must take a row from another partition it begins again and locks all
// progress rows, in the order of partitions, before anything else. Row locks are taken in the order of
// ids. The watermark skips progress rows that are locked.
package projection
