package telemetry_test

import (
	"os"
	"testing"

	"github.com/tidemark/tidemark/integration/story"
)

func TestMain(m *testing.M) { os.Exit(story.Main(m)) }
