package door

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/kafka"
	"github.com/tidemark/tidemark/shared/ticket"
)

func TestATicketOfTheDoorsOwnIsANewUUIDv7(t *testing.T) {
	t.Parallel()
	for _, partitions := range []int32{0, 1, 2, 12, 48} {
		d, _ := setup(t, Options{Log: logThatTakes(0), Partitions: partitions})
		seen := map[uuid.UUID]bool{}
		for range 2_000 {
			id, err := d.Ticket("", Binding{Wanted: Now}, noon)
			require.NoError(t, err)
			require.False(t, seen[id])
			seen[id] = true
			require.EqualValues(t, 7, id.Version())
			require.Equal(t, uuid.RFC4122, id.Variant())
			at, ok := ticket.Time(id)
			require.True(t, ok)
			require.WithinDuration(t, time.Now(), at, time.Minute)
		}
	}
}

func TestTicketsOfOneGroupShareAPartitionAndGroupsTakeTurns(t *testing.T) {
	t.Parallel()
	d, _ := setup(t, Options{Log: logThatTakes(0), Partitions: 12})
	turns := map[int32]int{}
	for range 24 {
		group := map[int32]int{}
		for range 20 {
			id, err := d.Ticket("", Binding{Wanted: Now}, noon)
			require.NoError(t, err)
			group[kafka.PartitionOf([]byte(id.String()), 12)]++
		}
		require.Len(t, group, 1)
		for p := range group {
			turns[p]++
		}
		_, err := accept(t.Context(), d, "k") // a group leaves
		require.NoError(t, err)
	}
	require.Len(t, turns, 12)
	for p, n := range turns {
		require.Equal(t, 2, n, "partition %d", p)
	}
}

func TestTheTextOfATicketIsThatOfItsUUID(t *testing.T) {
	t.Parallel()
	var text [36]byte
	for range 100 {
		id := uuid.New()
		write(&text, id)
		require.Equal(t, id.String(), string(text[:]))
	}
}

func TestWithAKeyTheTicketIsTheKeys(t *testing.T) {
	t.Parallel()
	d, _ := setup(t, Options{Log: logThatTakes(0), Partitions: 12})
	for _, key := range []string{v7(noon), "6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a55", "abc"} {
		want, wantErr := KeyTicket(key, Binding{Wanted: Now}, noon)
		id, err := d.Ticket(key, Binding{Wanted: Now}, noon)
		require.Equal(t, want, id)
		require.Equal(t, wantErr, err)
	}
}
