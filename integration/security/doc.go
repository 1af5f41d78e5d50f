// Package security tells the stories of keys, certificates and passwords on real servers: every route of
// every service asks for what its specification says, a broker and a database are reached by TLS and
// SASL or the refusal says why not, the APIs answer as they are specified, and nothing secret stands in a log.
package security
