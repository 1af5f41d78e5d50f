package recent

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAReadingIsGoodForAsManyTimesAsItTook(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		readings := 0
		v := Value[int]{For: time.Second, Times: 20, Patience: time.Minute, Read: func(context.Context) (int, error) {
			time.Sleep(100 * time.Millisecond)
			readings++
			return readings, nil
		}}
		get := func() int {
			n, err := v.Get(t.Context())
			require.NoError(t, err)
			return n
		}
		require.Equal(t, 1, get())
		time.Sleep(1999 * time.Millisecond)
		require.Equal(t, 1, get(), "a second is over, but not twenty times the reading")
		time.Sleep(time.Millisecond)
		require.Equal(t, 2, get())
		v.Forget()
		require.Equal(t, 3, get())

		v.Times = 0
		time.Sleep(999 * time.Millisecond)
		require.Equal(t, 3, get())
		time.Sleep(time.Millisecond)
		require.Equal(t, 4, get())
	})
}
