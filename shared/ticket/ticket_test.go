package ticket

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

func TestNewIsOrderedAndCarriesItsTime(t *testing.T) {
	t.Parallel()
	before := time.Now().Truncate(time.Millisecond)
	var last uuid.UUID
	for range 1000 {
		id, err := New()
		require.NoError(t, err)
		require.Positive(t, bytes.Compare(id[:], last[:]))
		at, ok := Time(id)
		require.True(t, ok)
		require.WithinRange(t, at, before, time.Now())
		last = id
	}
}

func TestParseTakesTheUsualFormOnly(t *testing.T) {
	t.Parallel()
	id, err := Parse("01920B5C-7d4e-7cc3-98c4-dc0c0c07398f")
	require.NoError(t, err)
	require.Equal(t, "01920b5c-7d4e-7cc3-98c4-dc0c0c07398f", id.String())
	for _, s := range []string{"", "x", "01920b5c7d4e7cc398c4dc0c0c07398f", "{01920b5c-7d4e-7cc3-98c4-dc0c0c07398f}",
		"urn:uuid:01920b5c-7d4e-7cc3-98c4-dc0c0c07398f", "01920b5c-7d4e-7cc3-98c4-dc0c0c07398g"} {
		_, err := Parse(s)
		require.ErrorContains(t, err, "is no ticket", s)
	}
}

func TestTimeIsOfVersion7Only(t *testing.T) {
	t.Parallel()
	_, ok := Time(uuid.New())
	require.False(t, ok)
}
