package projection

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/query-service/internal/testdb"
	"github.com/tidemark/tidemark/shared/await"
)

// grow makes the catalog old enough to be read again.
func (c *Catalog) grow() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read = c.read.Add(-2 * catalogFor)
}

func TestNobodyWaitsForAListOfProjectionsThatIsKnown(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	own := pool(t, db)
	own.SetMaxOpenConns(1)
	c := NewCatalog(own)
	known, err := c.All(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, known)

	held, err := own.Connx(t.Context()) // the pool has nothing left
	require.NoError(t, err)
	c.grow()
	short, cancel := context.WithCancelCause(t.Context())
	cancel(context.Canceled) // a wait would end with this
	again, err := c.All(short)
	require.NoError(t, err)
	require.Equal(t, known, again)
	d, err := c.Named(short, "timestamps")
	require.NoError(t, err)
	require.Equal(t, "timestamps", d.Name)
	_, err = c.Named(short, "nothing")
	require.ErrorIs(t, err, context.Canceled, "what is not known is looked for")

	require.NoError(t, held.Close())
	await.Until(t, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.reading == nil && time.Since(c.read) < catalogFor
	}, "the reading that was begun comes to its end")
}

func TestAProjectionIsFoundAsSoonAsItIsThere(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := NewCatalog(pool(t, db))
	_, err := c.Named(t.Context(), "late")
	var unknown *UnknownError
	require.ErrorAs(t, err, &unknown)
	_, err = db.ExecContext(t.Context(), `
INSERT INTO public.projections (projection, topic, schema_name, tables, main_table, ticket_column)
SELECT 'late', 'late.v1', 'late', tables, main_table, ticket_column FROM public.projections WHERE projection = 'timestamps'`)
	require.NoError(t, err)
	d, err := c.Named(t.Context(), "late")
	require.NoError(t, err)
	require.Equal(t, "late.v1", d.Topic)
}
