package limits_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/api/command"
	"github.com/tidemark/tidemark/shared/limits"
)

func TestNothingOnTheWayTakesLessThanWhatStandsBeforeIt(t *testing.T) {
	t.Parallel()
	for _, routes := range []map[string]int64{limits.Bodies, limits.Forms} {
		for path, limit := range routes {
			require.LessOrEqual(t, limit, int64(limits.LargestBody), path)
			require.LessOrEqual(t, int64(limits.ClientBody), limit, path)
		}
	}
	require.LessOrEqual(t, 6*limits.Payload, limits.ClientBody/2, "a payload that JSON writes six times as long fits into a request of the client")
	require.LessOrEqual(t, limits.Letters*(300+len(`"",`)), limits.DiscardBody, "so do as many of the longest positions as one request may name")
}

func TestTheSpecificationSaysTheSame(t *testing.T) {
	t.Parallel()
	doc, err := openapi3.NewLoader().LoadFromData(command.Spec)
	require.NoError(t, err)
	schema := func(name string) *openapi3.Schema { return doc.Components.Schemas[name].Value }
	require.EqualValues(t, limits.Letters, *schema("Redrive").Properties["letters"].Value.MaxItems)
	require.EqualValues(t, limits.Letters, *schema("Discard").Properties["positions"].Value.MaxItems)
	require.EqualValues(t, limits.Payload, *schema("Letter").Properties["payload"].Value.MaxLength)
	require.EqualValues(t, limits.Endpoints, *schema("NewEndpoints").OneOf[1].Value.MaxItems)
	for path := range limits.Bodies {
		require.NotNil(t, doc.Paths.Value(path), path)
	}
}

func TestTheDocumentSaysTheSame(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/security.md")
	require.NoError(t, err)
	for _, row := range []string{
		fmt.Sprintf("| headers | %d KiB,", limits.Header>>10),
		fmt.Sprintf("| body | %d KiB,", limits.Body>>10),
		fmt.Sprintf("| body of a list of endpoints | %d MiB, %d endpoints |", limits.EndpointsBody>>20, limits.Endpoints),
		fmt.Sprintf("| body of a redrive, by API or form | %d MiB, %d letters |", limits.RedriveBody>>20, limits.Letters),
		fmt.Sprintf("| body of a discard | %d MiB, %d letters |", limits.DiscardBody>>20, limits.Letters),
		fmt.Sprintf("| any other form of the pages | %d MiB |", limits.FormBody>>20),
		fmt.Sprintf("| line of a stream of timestamps | %d KiB |", limits.Line>>10),
		fmt.Sprintf("| of a stream, without an answer | %d KiB behind a front |", limits.ProxiedStream>>10),
		fmt.Sprintf("| payload of a redriven letter | %d characters |", limits.Payload),
	} {
		require.Contains(t, string(text), row)
	}
	require.Contains(t, string(text), fmt.Sprintf("a front must take bodies of %d MiB", limits.LargestBody>>20))
	require.Contains(t, string(text), fmt.Sprintf("never more than %d MiB", limits.ClientBody>>20))
}
