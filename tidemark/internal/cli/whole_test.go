package cli_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Shopify/sarama"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/await"
	"github.com/tidemark/tidemark/shared/topic"
)

// A night of operations by the command line alone: a file is stamped, dead letters are corrected and redriven, the tables are made
// anew and that is rolled back, and everything is looked at.
func TestEverythingTheClientDoesOnARunningUp(t *testing.T) {
	t.Parallel()
	u := startUp(t)
	file := filepath.Join(t.TempDir(), "instants")
	content := strings.Repeat("2009-09-28T19:03:12Z\n", 3000) + "yesterday\n"
	require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
	status, said := u.ask(t, "stamp", "--file", file, "--key", batch)
	require.Equal(t, 3, status, said)
	require.Contains(t, said, "accepted  3000")
	require.Contains(t, said, "line 3001: ")
	status, said = u.ask(t, "stamp", "--file", file, "--key", batch, "-o", "json")
	require.Equal(t, 3, status, said)
	var first struct{ ID, Position string }
	require.NoError(t, json.Unmarshal([]byte(said[:strings.Index(said, "\n")]), &first))
	status, said = u.ask(t, "ticket", first.ID, "--position", first.Position, "--wait=20s")
	require.Zero(t, status, said)
	require.Contains(t, said, "duplicate", "the second run was the same commands")

	var servers map[string]string
	status, said = u.ask(t, "env", "--data", u.dir, "-o", "json")
	require.Zero(t, status, said)
	require.NoError(t, json.Unmarshal([]byte(said), &servers))
	broken := []string{"01920b5c-7d4e-7cc3-98c4-00000000000a", "01920b5c-7d4e-7cc3-98c4-00000000000b", "01920b5c-7d4e-7cc3-98c4-00000000000c"}
	produce(t, servers["KAFKA_BROKERS"], broken)

	var listed struct {
		Items []struct{ Position, Payload string }
	}
	await.Until(t, func() bool {
		status, said = u.ask(t, "deadletters", "list", "-q", "month 13", "-o", "json")
		return status == 0 && json.Unmarshal([]byte(said), &listed) == nil && len(listed.Items) == 3
	}, "%s", &said)
	status, said = u.ask(t, "deadletters", "show", listed.Items[0].Position)
	require.Zero(t, status, said)
	require.Contains(t, said, "month 13")
	status, said = u.ask(t, "deadletters", "discard", listed.Items[0].Position, "--note", "a test", "--yes")
	require.Zero(t, status, said)

	letters := filepath.Join(t.TempDir(), "letters.ndjson")
	await.Until(t, func() bool { // the decision is on its way to the tables
		_ = os.Remove(letters)
		status, said = u.ask(t, "deadletters", "export", "-q", "month 13", "--file", letters)
		return status == 0 && strings.Contains(said, "written   2")
	}, "%s", &said)
	status, said = u.ask(t, "deadletters", "redrive", "--file", letters, "--yes")
	require.Equal(t, 3, status, "still broken: %s", said)
	require.Contains(t, said, listed.Items[1].Position)
	text, err := os.ReadFile(letters)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(letters, bytes.ReplaceAll(text, []byte("month 13"), []byte("2009-12-01T00:00:00Z")), 0o600))
	status, said = u.ask(t, "deadletters", "redrive", "--file", letters, "--yes", "--note", "the month", "-o", "json")
	require.Zero(t, status, said)
	var redriven struct {
		Results []struct{ Ticket, Command string }
	}
	require.NoError(t, json.NewDecoder(strings.NewReader(said)).Decode(&redriven)) // what the answer is followed by went to standard error
	require.Len(t, redriven.Results, 2)
	for _, r := range redriven.Results {
		require.Contains(t, broken, r.Ticket, "the first client's ticket comes alive")
		status, said = u.ask(t, "ticket", r.Ticket, "--position", r.Command, "--wait=20s")
		require.Zero(t, status, said)
		require.Contains(t, said, "applied")
	}

	status, said = u.ask(t, "audit", "--now")
	require.Zero(t, status, said)
	status, said = u.ask(t, "rebuild", "--projection", "timestamps")
	require.Zero(t, status, said)
	require.Contains(t, said, "serving since")
	require.Contains(t, said, "passed")
	status, said = u.ask(t, "rebuild", "swap", "--projection", "timestamps")
	require.Zero(t, status, "a rollback: %s", said)
	status, said = u.ask(t, "rebuild", "drop", "1", "--yes")
	require.Zero(t, status, said)
	status, said = u.ask(t, "rebuild", "start", "--to-position", "timestamp.command.v1/0@999999999")
	require.Equal(t, 3, status, said)
	status, said = u.ask(t, "rebuild", "status")
	require.Zero(t, status, said)
	require.NotContains(t, said, "timestamps_g1")
	status, said = u.ask(t, "status")
	require.Zero(t, status, said)
	status, said = u.ask(t, "doctor", "--data", u.dir)
	require.Zero(t, status, said)
	for _, found := range []string{"the tables were made from the cluster that answers", "topic " + topic.TimestampCommand.Name, "topic " + topic.DeadLetterCommand.Name, "clock of the database"} {
		require.Contains(t, said, found)
	}
	require.NotContains(t, said, "FAIL")
}

// produce writes records that no decoder takes, as a producer of somebody else's would.
func produce(t *testing.T, brokers string, ids []string) {
	t.Helper()
	c := sarama.NewConfig()
	c.Version = sarama.V2_8_0_0
	c.Producer.Return.Successes = true
	p, err := sarama.NewSyncProducer(strings.Split(brokers, ","), c)
	require.NoError(t, err)
	for _, id := range ids {
		_, _, err := p.SendMessage(&sarama.ProducerMessage{
			Topic: topic.TimestampCommand.Name, Key: sarama.StringEncoder(id),
			Value: sarama.StringEncoder(fmt.Sprintf(`{"command_id":%q,"event_timestamp":"month 13"}`, id)),
		})
		require.NoError(t, err)
	}
	require.NoError(t, p.Close())
}
