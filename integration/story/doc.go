// Package story is what tests need to tell a story across services: a broker, a database and the services as real
// processes (Story), a client of the log that knows nothing of Tidemark's own Kafka code (Log), the rows that a log
// must lead to (Expect), the rows that a database holds as text that can be compared byte for byte (Dump), and a
// patient HTTP client (Client).
//
// Stories run on Apache Kafka, or on the embedded broker when TEST_BROKER=embedded. Those of one process share a broker
// and a Postgres, which the first story starts; each has a topic and a database of its own. So stories of one process
// run one after the other, never in parallel.
package story
