package kafka

import (
	"errors"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// EmbeddedThatCuts is the embedded broker for tests from outside. cut makes it end the connection of the next record that comes in
// on one that is there, after it was written or before.
func EmbeddedThatCuts(t *testing.T) (brokers []string, cut func(written bool)) {
	t.Helper()
	h := setupHangs(t)
	return h.brokers, func(written bool) {
		if written {
			h.cut()
			return
		}
		h.cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
			return nil, errors.New("the connection ends"), true
		})
	}
}
