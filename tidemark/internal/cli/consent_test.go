package cli_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/tidemark/internal/cli"
)

// What cannot be taken back is told first, with what is lost and how many, and is done by --yes or by an answer at a terminal only.
func TestNothingFinalHappensWithoutConsent(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "letters.ndjson")
	line := `{"position":"timestamp.command.v1/3@10000","payload":"{}"}` + "\n"
	require.NoError(t, os.WriteFile(file, []byte(line+strings.Replace(line, "10000", "7", 1)), 0o600))
	const drop = "generation 1 of timestamps, standby, will be dropped with all its tables: the last swap can then not be rolled back"
	for name, tc := range map[string]struct {
		args []string
		says string
		dry  string // what a dry run says beyond it
	}{
		"discard all":      {[]string{"deadletters", "discard", "--all"}, "1200 dead letters (decode: 1200) will be discarded", ""},
		"discard one":      {[]string{"deadletters", "discard", at}, "1 dead letter will be discarded", ""},
		"redrive a file":   {[]string{"deadletters", "redrive", "--file", file, "--note", "n"}, "2 dead letters will be redriven", "1 of them would be refused, the first timestamp.command.v1/3@7"},
		"drop":             {[]string{"rebuild", "drop", "1"}, drop, ""},
		"replace standby":  {[]string{"rebuild", "start", "--projection", "timestamps", "--replace-standby"}, "timestamps will be rebuilt; " + drop, ""},
		"endpoint deleted": {[]string{"endpoints", "delete", site}, "the endpoint " + site + " will be deleted", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var sent []string
			try := func(interactive bool, answer string, more ...string) (status int, said string) {
				sent = nil
				mux := http.NewServeMux()
				for _, s := range []services{newLetterbox(1200).services(), (&works{states: []string{generation("standby", ""), ""}}).services(), {"DELETE /api/v1/endpoints/{id}": accepted}} {
					for pattern, handler := range s {
						mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
							if r.Method != http.MethodGet {
								sent = append(sent, r.URL.Path)
							}
							handler(w, r)
						})
					}
				}
				server := httptest.NewServer(mux)
				defer server.Close()
				var out, errOut bytes.Buffer
				ctx := t.Context()
				status = cli.Run(ctx, append(tc.args, more...), cli.Surroundings{
					Environ: map[string]string{"COMMAND_URL": server.URL, "CONSUMER_URL": server.URL, "QUERY_URL": server.URL, "HOME": t.TempDir()},
					In:      strings.NewReader(answer), Out: &out, Err: &errOut, Interactive: interactive,
				})
				return status, out.String() + errOut.String()
			}
			status, said := try(false, "y\n")
			require.Equal(t, 2, status, said)
			require.Contains(t, said, tc.says)
			require.Contains(t, said, "--yes")
			require.Empty(t, sent, "nobody could be asked")
			for _, answer := range []string{"n\n", "\n", ""} {
				status, said = try(true, answer)
				require.Equal(t, 2, status, said)
				require.Contains(t, said, tc.says)
				require.Contains(t, said, "nothing was done")
				require.Empty(t, sent)
			}
			status, said = try(false, "", "--dry-run", "--yes")
			require.Zero(t, status, said)
			require.Contains(t, said, tc.says)
			require.Contains(t, said, tc.dry)
			require.Empty(t, sent)
			_, said = try(true, "y\n")
			require.Contains(t, said, tc.says)
			require.NotEmpty(t, sent, said)
			_, said = try(false, "", "--yes")
			require.NotEmpty(t, sent, said)
		})
	}
}
