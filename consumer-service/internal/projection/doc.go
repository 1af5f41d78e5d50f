// Package projection turns a topic into tables, exactly once, and can be asked whether it did. It knows no topic and no
// table: a Definition says what is projected, and its Main decodes records and names columns.
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
//	             ├─────────► slow write: the rule for one key in two records, dead letters by bisection
//	             │  no progress row matched
//	             ├─────────► fenced: read epoch and progress again
//	             │             same epoch, progress ahead   drop what is below it, try the rest
//	             │             same epoch, progress behind  end the session, seek anew
//	             │             a swap is under way          wait, read again
//	             │             other epoch, not behind      go on under it (a swap)
//	             │             other epoch, behind          end the session (it was started over)
//	             │             other group name             stop for good
//	             │  anything else
//	             └─────────► the database is down: hold the assignment, back off, say so, try again
//
// # Epochs
//
// An epoch is the fencing token of a generation's writers. It counts nothing. A new one is drawn when the generation
// starts over, by a new group name or by Kafka's own offset reset. Starting over is one transaction under the generation
// row's lock: derived tables empty, zero progress for every partition, a new epoch. It fences every writer of the epoch
// before. Rows of the main table stay and are recognised as their own records' when these come again; dead letters go,
// since the code may have learned to read them. What was decided on a dead letter is known before a session projects
// anything, and holds: its record is rejected again, whatever the code could do with it.
//
// # One key, two records
//
// Of all records with one key of the main table, one is the row. It is applied, the others are duplicates. Of a Spread
// definition it is the one with the lowest (log time, partition, offset), whichever is read first: a row may be taken from
// a record of another partition, whose outcome then moves from applied to duplicate. Of a Keyed definition it is the one
// with the lowest offset, and outcomes never change. Neither rule depends on the order of reading, so every replay gives
// the same rows and the same counts.
//
// # Folding
//
// Derived tables are folded from the applied records of a batch, in the order of their offsets, once all rows are decided
// and in the same transaction. Where Postgres refuses a record, in its row or in the fold, the record becomes a dead
// letter, everything that the batch has written is taken back, and the batch is decided anew without it. So the tables
// depend on the records alone, not on how they were cut into batches.
//
// # Receipts
//
// Each batch, and each range of offsets that is booked as skipped, leaves a receipt in the outbox, in the
// statement that moves the fence and reading from it. A partition that is caught up and idle leaves one without offsets
// every five seconds.
//
// # Roles
//
// A projector writes the generation that serves (Serving), whose tables stand in the definition's own schema, or one that
// does not (Candidate), which has a schema and a consumer group of its own. The latter decides nothing: package
// generation makes it, proves it, and swaps it in by moving tables under writers that it has fenced before. A
// swap gives both generations fresh epochs, and leaves the progress in the serving schema at or past what its writers have
// written, so their assignments go on in the tables that are there now.
//
// # Locks
//
// Tables before rows, in the order of Definition.All. A fast write holds its own progress row, then inserts in the order
// of keys. A slow write locks its own progress row first; where it must take a row from another partition it begins again
// and locks all progress rows, in the order of partitions, before anything else. Row locks are taken in the order of
// keys. The watermark skips progress rows that are locked.
package projection
