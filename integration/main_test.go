// Package integration_test tells stories across the services, on real servers; see package story.
package integration_test

import (
	"os"
	"testing"

	"github.com/tidemark/tidemark/integration/story"
)

func TestMain(m *testing.M) { os.Exit(story.Main(m)) }
