// Package fault disturbs the services while they work, and compares their tables with what the log says.
//
// TestExactlyOnce is the runner: several projections of one log side by side, each with a database, a consumer group and
// two consumers of its own, while writers keep the log growing through command-service and past it. In each wave every
// projection meets a fault drawn from the seed, and in most waves a server does too; then all of them must hold exactly
// what the log says. A projection that went through a wave is a round. After the last one the receipts in the log must
// cover every offset of every projection.
//
// It prints its seed and each wave's faults. A wave that failed is run again alone by
//
//	go test ./fault -run ExactlyOnce -seed SEED -wave WAVE
//
// The same faults come again at the same moments; what the machine does meanwhile is its own.
//
// TestARebuildSurvivesEveryDeath lets such projections be rebuilt and kills a process at each step of it.
//
// The other tests each break one thing on purpose: a writer that sleeps between reading and sending, or inside a
// transaction; records that nothing can read; a database that refuses; a log that is another one than before.
package fault
