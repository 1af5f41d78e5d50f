package story

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

func at(partition int32, offset, millisecond int64, value string) Record {
	return Record{Partition: partition, Offset: offset, Time: time.UnixMilli(millisecond).UTC(), Value: []byte(value)}
}

func stamp(id byte, year int) string {
	return fmt.Sprintf(`{"command_id":"%s","event_timestamp":"%04d-09-28T21:03:12.1234567+02:00"}`, uuid.UUID{15: id}, year)
}

func TestExpectTakesTheLowestByLogTimePartitionAndOffset(t *testing.T) {
	t.Parallel()
	e := Expect([]Record{
		at(0, 0, 5, stamp(2, 2000)),
		at(0, 1, 5, stamp(1, 2001)), // same time as 1@7 below: the lower partition wins
		at(0, 2, 9, stamp(1, 2002)),
		at(1, 6, 4, stamp(2, 2003)), // earlier than 0@0
		at(1, 7, 5, stamp(1, 2004)),
		at(1, 8, 5, "null"),
		at(1, 9, 5, stamp(3, 0)),
		at(2, 0, 1, stamp(4, 2005)),
	}, Rules{Refuses: func(id uuid.UUID, at time.Time) bool { return id[15] == 4 && at.Year() == 2005 }})
	require.Equal(t, "00000000-0000-0000-0000-000000000001\t2001-09-28T19:03:12.123456Z\t1970-01-01T00:00:00.005000Z\t0\t1\n"+
		"00000000-0000-0000-0000-000000000002\t2003-09-28T19:03:12.123456Z\t1970-01-01T00:00:00.004000Z\t1\t6\n", e.Rows)
	require.Equal(t, 2, e.Count)
	require.Equal(t, map[int32]Outcomes{0: {Applied: 1, Duplicate: 2}, 1: {Applied: 1, Duplicate: 1, Rejected: 2}, 2: {Rejected: 1}}, e.Outcomes)
	require.Equal(t, []string{"timestamp.command.v1/1@8", "timestamp.command.v1/1@9", "timestamp.command.v1/2@0"}, e.DeadLetters)
	require.Equal(t, "0\t0\t3\t1\t2\t0\t0\n1\t0\t10\t1\t1\t2\t6\n2\t0\t1\t0\t0\t1\t0\n", e.OutcomeLines(Vector{0: 3, 1: 10, 2: 1, 3: 0}))
}

func TestDecodeRefusesWhatIsNoCommand(t *testing.T) {
	t.Parallel()
	for _, value := range []string{
		"", "null", "7", `{"command_id":7}`, `{}`,
		`{"command_id":"00000000000000000000000000000001","event_timestamp":"2009-09-28T19:03:12Z"}`,
		`{"command_id":"00000000-0000-0000-0000-00000000000g","event_timestamp":"2009-09-28T19:03:12Z"}`,
		`{"command_id":"00000000-0000-0000-0000-000000000001","event_timestamp":"2009-09-28"}`,
		`{"command_id":"00000000-0000-0000-0000-000000000001","event_timestamp":"0001-01-01T00:00:00+01:00"}`,
	} {
		_, _, err := decode([]byte(value))
		require.Error(t, err, value)
	}
	_, _, err := decode(nil)
	require.Error(t, err)
}
