package receipt

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

// The outbox in memory, for tests in which time is not real, does what the one in Postgres does.
func TestAStoreGivesTheOldestRowsToOneAtATime(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(*testing.T) Store{
		"in memory": func(*testing.T) Store {
			s := &heldStore{}
			for n := range int64(10) {
				s.add(n, n+1)
			}
			return s
		},
		"Postgres": func(t *testing.T) Store {
			db := database(t)
			filled(t, db, "timestamps", 0)
			return &Postgres{db, "timestamps"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			oldest := func(limit int) (from, numbers []int64) {
				rows, err := s.Oldest(t.Context(), limit)
				require.NoError(t, err)
				for _, r := range rows {
					from, numbers = append(from, r.From), append(numbers, r.Number)
				}
				return from, numbers
			}
			from, numbers := oldest(3)
			require.Equal(t, []int64{0, 1, 2}, from)
			require.IsIncreasing(t, numbers)
			from, _ = oldest(100)
			require.Len(t, from, 10)

			require.NoError(t, s.Delete(t.Context(), numbers[1:]))
			require.NoError(t, s.Delete(t.Context(), numbers[1:]), "those that are not there any more are no error")
			from, _ = oldest(3)
			require.Equal(t, []int64{0, 3, 4}, from)

			inside := 0
			for range 2 { // the lock is given back
				called, err := s.Alone(t.Context(), func(ctx context.Context) error {
					inside++
					called, err := s.Alone(ctx, func(context.Context) error { inside += 100; return nil })
					require.NoError(t, err)
					require.False(t, called, "somebody is inside")
					return nil
				})
				require.NoError(t, err)
				require.True(t, called)
			}
			require.Equal(t, 2, inside)
		})
	}
}
