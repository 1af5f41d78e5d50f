package door

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/ticket"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// v7 returns a UUIDv7 of that instant.
func v7(at time.Time) string {
	id := uuid.MustParse("00000000-0000-7000-8000-00000000abcd")
	for ms, i := at.UnixMilli(), 5; i >= 0; i, ms = i-1, ms>>8 {
		id[i] = byte(ms)
	}
	return id.String()
}

func TestAUUIDv7IsItselfTheTicket(t *testing.T) {
	t.Parallel()
	for _, key := range []string{v7(noon), v7(noon.Add(-1000 * 24 * time.Hour)), v7(noon.Add(5 * time.Minute)), strings.ToUpper(v7(noon)), `"` + v7(noon) + `"`} {
		id, err := KeyTicket(key, Binding{Wanted: Now}, noon)
		require.NoError(t, err)
		require.Equal(t, strings.ToLower(strings.Trim(key, `"`)), id.String())
		other, err := KeyTicket(key, Binding{Wanted: "2009-09-28T19:03:12Z"}, noon)
		require.NoError(t, err)
		require.Equal(t, id, other, "whatever is wanted: this very command")
	}
}

// The golden values freeze the rule: a retry may come a year after the first attempt.
func TestAnyOtherUUIDIsMadeIntoATicket(t *testing.T) {
	t.Parallel()
	const key = "6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a55"
	binding := Binding{Route: "POST /api/v1/timestamp", Wanted: "2009-09-28T19:03:12Z"}
	for _, tc := range []struct {
		key     string
		binding Binding
		want    string
	}{
		{key, binding, "14b6d3bf-5f77-87a1-b723-4ef3ac785284"},
		{strings.ToUpper(key), binding, "14b6d3bf-5f77-87a1-b723-4ef3ac785284"},
		{`"` + key + `"`, binding, "14b6d3bf-5f77-87a1-b723-4ef3ac785284"},
		{key, Binding{Route: binding.Route, Wanted: Now}, "92e56d8f-6f2c-8410-9e2d-fb6f21d8f481"},
	} {
		id, err := KeyTicket(tc.key, tc.binding, noon)
		require.NoError(t, err)
		require.Equal(t, tc.want, id.String())
		require.EqualValues(t, 8, id.Version())
		require.Equal(t, uuid.RFC4122, id.Variant())
	}
	seen := map[uuid.UUID]Binding{}
	for _, w := range []Binding{
		binding,
		{Route: binding.Route, Wanted: Now},
		{Route: binding.Route, Wanted: "2009-09-28T19:03:13Z"},
		{Route: "another", Wanted: binding.Wanted},
		{Caller: "somebody", Route: binding.Route, Wanted: binding.Wanted},
		{Caller: "somebodyPOST /api/v1/timestamp", Wanted: binding.Wanted}, // no two lists of parts read the same
	} {
		id, err := KeyTicket(key, w, noon)
		require.NoError(t, err)
		require.NotContains(t, seen, id)
		seen[id] = w
	}
}

func TestKeysThatAreRefusedSayWhy(t *testing.T) {
	t.Parallel()
	for key, rule := range map[string]string{
		"":                                       "without authentication a key is a UUID",
		"abc":                                    "without authentication a key is a UUID",
		`""`:                                     "without authentication a key is a UUID",
		`"`:                                      "without authentication a key is a UUID",
		strings.Repeat("x", 500):                 "without authentication a key is a UUID",
		"{6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a55}": "without authentication a key is a UUID",
		v7(noon.Add(5*time.Minute + time.Second)): "more than 5m0s ahead of this clock",
		v7(noon.Add(1000 * time.Hour)):            "more than 5m0s ahead of this clock",
		"14b6d3bf-5f77-87a1-b723-4ef3ac785284":    "send that key again",
		"00000000-0000-0000-0000-000000000000":    "the same for everybody",
		"ffffffff-ffff-ffff-ffff-ffffffffffff":    "the same for everybody",
		"6f2b8a0e-58cf-9d63-9a0d-0d1f3c1f3a55":    "no UUID of a known version",
		"6f2b8a0e-58cf-0d63-9a0d-0d1f3c1f3a55":    "no UUID of a known version",
		"6f2b8a0e-58cf-4d63-1a0d-0d1f3c1f3a55":    "no UUID of a known version",
	} {
		_, err := KeyTicket(key, Binding{Wanted: Now}, noon)
		var refused *KeyError
		require.ErrorAs(t, err, &refused, key)
		require.ErrorContains(t, err, rule, key)
		require.Less(t, len(err.Error()), 400)
	}
}

// A caller who is known may choose any word: it is a key among that caller's own. The golden value freezes it.
func TestACallersKeyIsAnyWordAndItsOwn(t *testing.T) {
	t.Parallel()
	mine := Binding{Caller: "k3v5oq2mda", Route: "POST /api/v1/timestamp", Wanted: Now}
	theirs := mine
	theirs.Caller = "another"
	seen := map[uuid.UUID]string{}
	for _, key := range []string{"order-17", "order-18", "x", strings.Repeat("x", 255), "6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a55", "with a space"} {
		for _, w := range []Binding{mine, theirs} {
			id, err := KeyTicket(key, w, noon)
			require.NoError(t, err, key)
			require.EqualValues(t, 8, id.Version())
			require.NotContains(t, seen, id)
			seen[id] = key
			quoted, err := KeyTicket(`"`+key+`"`, w, noon)
			require.NoError(t, err)
			require.Equal(t, id, quoted)
		}
	}
	id, err := KeyTicket("order-17", mine, noon)
	require.NoError(t, err)
	require.Equal(t, "38fb65cc-7aad-8d67-b496-dc06a6e708cb", id.String())
	id, err = KeyTicket(v7(noon), mine, noon)
	require.NoError(t, err)
	require.Equal(t, v7(noon), id.String(), "a UUIDv7 is the ticket, whoever sends it")
	for _, key := range []string{"", `""`, strings.Repeat("x", 256), "tab\there", "ü"} {
		_, err := KeyTicket(key, mine, noon)
		require.ErrorContains(t, err, "1 to 255 printable", key)
	}
}

func FuzzKeyTicket(f *testing.F) {
	for _, seed := range []string{"abc", v7(noon), "6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a55", `"6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a55"`, "ffffffff-ffff-ffff-ffff-ffffffffffff", "urn:uuid:6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a55"} {
		f.Add(seed, Now)
		f.Add(seed, "2009-09-28T19:03:12Z")
	}
	f.Fuzz(func(t *testing.T, key, wanted string) {
		w := Binding{Route: "r", Wanted: wanted}
		id, err := KeyTicket(key, w, noon)
		if err != nil {
			var refused *KeyError
			require.True(t, errors.As(err, &refused))
			return
		}
		again, err := KeyTicket(key, w, noon)
		require.NoError(t, err)
		switch {
		case id.Version() == 7:
			require.Equal(t, strings.ToLower(strings.Trim(key, `"`)), id.String())
			at, ok := ticket.Time(id)
			require.True(t, ok)
			require.LessOrEqual(t, at.Sub(noon), maxAhead)
		default:
			require.EqualValues(t, 8, id.Version())
			require.Equal(t, id, again)
			other, err := KeyTicket(key, Binding{Route: "r", Wanted: wanted + "x"}, noon)
			require.NoError(t, err)
			require.NotEqual(t, id, other)
		}
	})
}

// The golden values freeze this rule too.
func TestEachPlaceOfAListHasATicketOfItsOwn(t *testing.T) {
	t.Parallel()
	b := Binding{Route: "POST /api/v1/endpoints", Wanted: `{"url":"https://example.org"}`}
	const key = "6f2b8a0e-58cf-4d63-9a0d-0d1f3c1f3a55"
	seen := map[uuid.UUID]bool{}
	for _, tc := range []struct {
		key   string
		place int
		want  string
	}{
		{key, 0, "a1105fd3-ab9c-863a-839f-f24d950f7bea"}, {key, 1, "b4dbddc6-0d1c-889c-8c4f-2aa113d9362d"}, {v7(noon), 0, "53347e63-2dc5-800d-b1b3-a72847c9cfe5"},
	} {
		id, err := PlaceTicket(tc.key, b, tc.place, noon)
		require.NoError(t, err)
		require.Equal(t, tc.want, id.String())
		require.EqualValues(t, 8, id.Version(), "a UUIDv7 cannot be the ticket of all")
		require.False(t, seen[id])
		seen[id] = true
		again, err := PlaceTicket(`"`+strings.ToUpper(tc.key)+`"`, b, tc.place, noon)
		require.NoError(t, err)
		require.Equal(t, id, again)
		other, err := PlaceTicket(tc.key, Binding{Route: b.Route, Wanted: "{}"}, tc.place, noon)
		require.NoError(t, err)
		require.NotEqual(t, id, other)
	}
	alone, err := KeyTicket(key, b, noon)
	require.NoError(t, err)
	require.False(t, seen[alone], "a list of one is a list")
	for _, key := range []string{"word", alone.String(), uuid.Nil.String(), v7(noon.Add(time.Hour))} {
		_, err := PlaceTicket(key, b, 0, noon)
		require.ErrorAs(t, err, new(*KeyError), key)
	}
}
