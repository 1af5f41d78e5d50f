package fault_test

import (
	"os"
	"testing"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/integration/story"
)

func TestMain(m *testing.M) {
	story.Proxies = append(story.Proxies, deploymentProxies()...)
	os.Exit(story.Main(m))
}

// onKafka sets a story's stage on Apache Kafka. The embedded broker runs inside this very process and cannot be killed,
// stopped or cut; what it promises has tests of its own.
func onKafka(t *testing.T) *story.Story {
	t.Helper()
	if story.Kind() != stack.ApacheKafka {
		t.Skip("only a broker that is a process of its own can be disturbed")
	}
	return story.New(t)
}
