package stack_test

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// The thread that forks stays on purpose.
		goleak.IgnoreTopFunction("github.com/tidemark/tidemark/integration/stack.workOnOneThread"),
		// Sarama's metrics keep one ticker a process.
		goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"))
}
