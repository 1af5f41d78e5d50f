package app

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
)

// What is not there is a page for a browser, and a problem for a program, whatever the route.
func TestWhatIsNotThereIsAPageForBrowsers(t *testing.T) {
	t.Parallel()
	db, s := setup(t)
	db.BeginEndpoints(t)
	for _, tc := range []struct {
		method, path string
		status       int
	}{
		{http.MethodGet, "/nowhere", 404}, {http.MethodGet, "/api/v1/nowhere", 404}, {http.MethodGet, "/assets/nothing", 404}, {http.MethodGet, "/assets/", 404},
		{http.MethodGet, "/projections/nowhere", 404}, {http.MethodGet, "/projections/nowhere/rebuild", 404}, {http.MethodGet, "/dead-letters/timestamp.command.v1/0@99", 404},
		{http.MethodGet, "/endpoints/01920b5c-7d4e-7cc3-98c4-dc0c0c07398f", 404},
		{http.MethodDelete, "/records", 405}, {http.MethodPut, "/api/v1/timestamps", 405}, {http.MethodGet, "/projections/timestamps/audit", 405},
	} {
		what := tc.method + " " + tc.path
		a, err := s.do(t.Context(), tc.method, tc.path, "", "Accept", browser)
		require.NoError(t, err)
		require.Equal(t, tc.status, a.status, what)
		requireSound(t, what, a)
		for _, accept := range []string{"", "*/*", "application/json"} {
			a, err = s.do(t.Context(), tc.method, tc.path, "", "Accept", accept)
			require.NoError(t, err)
			require.Equal(t, tc.status, a.status, what)
			require.Equal(t, "application/problem+json", a.header.Get("Content-Type"), what)
			require.EqualValues(t, tc.status, a.object(t)["status"], what)
		}
		if tc.status == 405 {
			require.NotEmpty(t, a.header.Get("Allow"), what)
		}
	}
}
