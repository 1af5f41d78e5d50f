package httpapi

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/problem"
)

func TestWhatIsNotThereIsAPageForBrowsers(t *testing.T) {
	t.Parallel()
	e, _ := setup(t)
	for path, status := range map[string]int{"/<nowhere>": 404, "/echo/x": 405} {
		w := call(e, "GET", path, "", "Accept", "text/html,*/*;q=0.8")
		require.Equal(t, status, w.Code)
		require.Equal(t, "text/html; charset=utf-8", w.Header().Get("Content-Type"))
		require.NotContains(t, w.Body.String(), "<nowhere>")
		w = call(e, "GET", path, "", "Accept", "*/*")
		require.Equal(t, status, w.Code)
		require.Equal(t, problem.ContentType, w.Header().Get("Content-Type"))
	}
}
