package security_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/integration/story"
)

// checks of Schemathesis: no server error, and no status, type, header or body that is not in the specification. What it
// would say of keys is said by the table of keys, for which wrong ones are not limited; and that a text of a valid length is
// refused for what it says (an instant, a position) is no breach.
const checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance,unsupported_method,allow_header_conformance"

// TestTheAPIsKeepTheirWord lets Schemathesis send what the specifications allow, and what they do not, to every service on
// real servers, and requires every answer to be one of theirs.
func TestTheAPIsKeepTheirWord(t *testing.T) {
	s := story.New(t)
	fetching, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	python, err := stack.Schemathesis(fetching)
	require.NoError(t, err)
	file, keys := keysFile(t, "admin")
	services := servicesOf(t, s, map[string]string{"API_KEYS_FILE": file, "RATE_LIMIT": "0"})
	// There is something to read, up to the positions that stand in the specifications as examples: a read that waits
	// for one that never comes would be answered, rightly, with 504.
	messages := make([]story.Message, 50)
	for i := range messages {
		id := uuid.NewString()
		messages[i] = story.Message{Partition: 3, Key: id, Value: []byte(`{"command_id":"` + id + `","event_timestamp":"2009-09-28T19:03:12Z"}`)}
		if i%10 == 0 {
			messages[i].Value = []byte(fmt.Sprintf("broken %d \xff", i))
		}
	}
	_, err = s.Log.Write(messages...)
	require.NoError(t, err)
	s.RequireProjected(s.DB)

	for _, service := range services {
		t.Run(service.Name(), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			args := []string{
				"-m", "schemathesis.cli", "run", service.URL() + "/openapi.yaml", "--header", "Authorization: Bearer " + keys["admin"],
				"--checks", checks, "--phases", "examples,coverage,fuzzing", "--max-examples", "25", "--seed", "20260301", "--no-shrink",
				"--continue-on-failure", "--max-redirects", "0", "--request-timeout", "60", "--warnings", "off", "--no-color",
			}
			for _, endless := range streams(t, service) {
				args = append(args, "--exclude-operation-id", endless)
			}
			run := exec.CommandContext(ctx, python, args...)
			run.Dir = t.TempDir() // where it keeps what it found
			require.NoError(t, os.WriteFile(filepath.Join(run.Dir, "hooks.py"), stack.SchemathesisHooks, 0o600))
			run.Env = append(os.Environ(), "SCHEMATHESIS_HOOKS=hooks", "PYTHONPATH="+run.Dir)
			output, err := run.CombinedOutput()
			require.NoError(t, err, "%s", strings.ReplaceAll(string(output), keys["admin"], "…"))
			t.Logf("%s", output)
		})
	}
}

// streams are the operations whose answer has no end: a stream of events.
func streams(t *testing.T, service *stack.Service) (ids []string) {
	t.Helper()
	_, _, text := send(t.Context(), t, visitor(t, ""), "GET", service.URL()+"/openapi.yaml", "", "")
	doc, err := openapi3.NewLoader().LoadFromData([]byte(text))
	require.NoError(t, err)
	for _, path := range doc.Paths.Map() {
		for _, operation := range path.Operations() {
			for _, response := range operation.Responses.Map() {
				if response.Value.Content["text/event-stream"] != nil && !slices.Contains(ids, operation.OperationID) {
					ids = append(ids, operation.OperationID)
				}
			}
		}
	}
	return ids
}
