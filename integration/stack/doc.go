// Package stack runs the servers that tests need as real processes on loopback, and disturbs them: Apache Kafka from
// its jars, a private Postgres, Tidemark's own services, and TCP proxies between them that cut, hang and slow.
//
// Whatever is started here dies with the process that started it, a kill -9 of that process included (on Linux; see
// spawn), listens on 127.0.0.1 only, and takes ports below the range from which the system draws those of outgoing
// connections: a client that keeps dialling a port whose server is down could otherwise be given that very port, and
// connect to itself.
//
// Everything returns errors and knows nothing of testing; package story wraps it for tests.
package stack
