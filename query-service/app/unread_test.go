package app

import (
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/query-service/internal/testdb"
)

func TestWhatIsAskedForAndNotReadIsRefusedInWords(t *testing.T) {
	t.Parallel()
	_, s := setup(t)
	for path, words := range map[string]string{
		"/api/v1/timestamps?limt=3":                    "&#34;limt&#34; is not known here: this takes order, limit, before, after",
		"/api/v1/deadletters?stat=open":                "&#34;stat&#34; is not known here",
		"/dead-letters?state=opn":                      "query parameter &#34;state&#34;",
		"/dead-letters?partition=abc":                  "query parameter &#34;partition&#34;: an invalid integer",
		"/records?limit=3":                             "&#34;limit&#34; is not known here: this takes before, after",
		"/?limit=3":                                    "this takes none",
		"/health?verbose":                              "this takes none",
		"/endpoints/" + uuid.NewString() + "?before=x": "an invalid integer",
	} {
		page := s.get(t, path, "Accept", "text/html")
		require.Equal(t, 400, page.status, path)
		if page.header.Get("Content-Type") == "application/problem+json" {
			require.Contains(t, []string{"/api", "/hea"}, path[:4], "a browser gets a page")
			require.NotEmpty(t, page.object(t)["detail"])
			continue
		}
		require.Contains(t, page.body, words, path)
	}
	for _, path := range []string{"/dead-letters?state=&q=&projection=&reason_code=&partition=", "/endpoints?q=&group=&tag="} {
		require.NotEqual(t, 400, s.get(t, path).status, "a form sends its empty fields")
	}
}

func TestHeadIsAnsweredLikeGetAndWithoutABody(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	id := uuid.New()
	require.NoError(t, db.Project(t.Context(), 0, testdb.Row{ID: id, Stamp: stamp}))
	for _, path := range []string{"/", "/health", "/ready", "/metrics", "/docs", "/openapi.yaml", "/assets/tidemark.css", "/records", "/api/v1/timestamp/" + id.String(), "/api/v1/events?watch=projection"} {
		begin := time.Now()
		a, err := s.do(t.Context(), http.MethodHead, path, "")
		require.NoError(t, err)
		require.Equal(t, 200, a.status, path)
		require.Empty(t, a.body)
		require.NotEmpty(t, a.header.Get("Content-Type"), path)
		require.Less(t, time.Since(begin), 10*time.Second, path)
	}
}
