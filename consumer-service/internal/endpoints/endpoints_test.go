package endpoints_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/tidemark/tidemark/consumer-service/internal/endpoints"
	"github.com/tidemark/tidemark/consumer-service/internal/projection/projectiontest"
	"github.com/tidemark/tidemark/shared/event"
	"github.com/tidemark/tidemark/shared/topic"
)

func TestMain(m *testing.M) { projectiontest.Main(m) }

func command(r *rand.Rand, endpoint, id uuid.UUID) event.EndpointCommand {
	c := event.EndpointCommand{CommandID: id, EndpointID: endpoint, Kind: event.EndpointPut, SentBy: []string{"", "ci", "a person"}[r.IntN(3)]}
	if r.IntN(5) == 0 {
		c.Kind = event.EndpointDelete
		return c
	}
	c.Endpoint = event.Endpoint{
		URL: fmt.Sprint("https://example.org/", r.IntN(100)), Name: strings.Repeat("ü", 1+r.IntN(200)), Group: []string{"", "shop"}[r.IntN(2)],
		Interval: time.Duration(5+r.IntN(1000)) * time.Second, Enabled: r.IntN(2) == 0,
	}
	for range r.IntN(4) {
		c.Endpoint.Tags = append(c.Endpoint.Tags, fmt.Sprintf("tag \"%d\"", r.IntN(9)))
	}
	c.Document = event.AppendEndpoint(nil, c.Endpoint)
	if r.IntN(2) == 0 { // a member that this release does not know
		c.Document = append(c.Document[:len(c.Document)-1], `,"conditions":["status == 200", 1.50e3]}`...)
	}
	return c
}

func record(c event.EndpointCommand) projectiontest.Record {
	return projectiontest.Record{
		Key: []byte(c.EndpointID.String()), Value: event.AppendEndpointCommand(nil, c), Identity: fmt.Sprint(c.EndpointID, "/", c.CommandID), Partition: projectiontest.AnyPartition,
	}
}

// some is one of a few endpoints, so that commands about one follow each other.
func some(r *rand.Rand) uuid.UUID { return uuid.NewSHA1(uuid.NameSpaceURL, []byte{byte(r.IntN(10))}) }

func TestEndpoints(t *testing.T) {
	t.Parallel()
	valid := func(r *rand.Rand, _ time.Time) projectiontest.Record { return record(command(r, some(r), uuid.New())) }
	projectiontest.Run(t, endpoints.Definition, projectiontest.Samples{
		Topic: topic.EndpointCommand,
		Valid: valid,
		Undecodable: func(r *rand.Rand) projectiontest.Record {
			out := valid(r, time.Now())
			out.Identity, out.Rejected = "", projectiontest.Decode
			switch r.IntN(6) {
			case 0:
				out.Value = nil
			case 1:
				out.Value = []byte(strings.Replace(string(out.Value), `"kind"`, `"sort"`, 1))
			case 2:
				out.Value = []byte(strings.Replace(string(out.Value), `"command_id":"`, `"command_id":7,"c":"`, 1))
			case 3:
				out.Value = []byte(strings.Repeat("[", 100_000))
			case 4:
				out.Value = fmt.Appendf(nil, `{"command_id":"%s","endpoint_id":"%s","kind":"put","sent_by":"","endpoint":{"url":"https://a.example","name":"n","interval":30}}`, uuid.New(), some(r))
			case 5:
				out.Value = out.Value[:len(out.Value)/2]
			}
			return out
		},
		Repeat: func(r *rand.Rand, of projectiontest.Record) projectiontest.Record {
			endpoint, id, _ := strings.Cut(of.Identity, "/")
			return record(command(r, uuid.MustParse(endpoint), uuid.MustParse(id)))
		},
		Stray: func(r *rand.Rand, at time.Time) projectiontest.Record {
			out := valid(r, at)
			out.Key, out.Rejected = []byte(uuid.NewString()), projectiontest.Misplaced
			return out
		},
	})
}
