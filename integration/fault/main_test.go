package fault_test

import (
	"os"
	"testing"

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
	return story.NewOnKafka(t, "only a broker that is a process of its own can be disturbed")
}
