package kafka

import (
	"errors"
	"fmt"
)

// ErrNotKnown says that a topic is not there and that nobody has known it: only such a one may be made.
var ErrNotKnown = errors.New("no topic has this name, and none was noted")

// IdentityError says that the topic that stands under a name is not the one that was noted for it, so that offsets in it
// would mean other records.
type IdentityError struct {
	Topic string
	Noted string // the id that was noted
	Found string // the id that was found; empty where there is no such topic
}

func (e *IdentityError) Error() string {
	if e.Found == "" {
		return fmt.Sprintf("topic %s is not there: it was, with the id %s; it was deleted, or the brokers have lost it. It is not made again, since that would hide the loss: bring it back; if its records are given up, make it by hand and set ACCEPT_NEW_LOG=%s@ and its new id", e.Topic, e.Noted, e.Topic)
	}
	return fmt.Sprintf("topic %s is another one: it has the id %s and had %s, so it was deleted and made anew. Bring the old one back; if its records are given up, set ACCEPT_NEW_LOG=%s@%s and restart", e.Topic, e.Found, e.Noted, e.Topic, e.Found)
}

// ClusterError says that the brokers are not those that KAFKA_CLUSTER_ID names.
type ClusterError struct{ Wanted, Found string }

func (e *ClusterError) Error() string {
	return fmt.Sprintf("KAFKA_CLUSTER_ID is %s and the brokers at KAFKA_BROKERS are of cluster %s: name the brokers of that cluster, or, if its log is given up, change KAFKA_CLUSTER_ID", e.Wanted, e.Found)
}

// IsOtherLog reports whether err says that what stands under a topic's name is not what was known.
func IsOtherLog(err error) bool {
	var topic *IdentityError
	var cluster *ClusterError
	return errors.As(err, &topic) || errors.As(err, &cluster)
}
