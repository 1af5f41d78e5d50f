package integration_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/integration/stack"
	"github.com/tidemark/tidemark/integration/story"
	"github.com/tidemark/tidemark/shared/auth"
)

// Every page, in every state that it has, can be used by everybody, as far as axe-core can tell: at a desk and on a
// phone, light and dark. One stack is led from state to state. With SCREENSHOTS=FOLDER each is kept as a picture, to be
// looked at. The page of the API is Swagger UI's own and is left out.
func TestEverybodyCanUseEveryPage(t *testing.T) {
	s := story.NewOnKafka(t, samePages)
	database, err := stack.StartProxy(t.Context(), s.Postgres.Address())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, database.Close()) })
	through, err := stack.Through(database, s.DBURL)
	require.NoError(t, err)
	door, consumer := s.Door(), s.Consumer("")
	peers := map[string]string{"COMMAND_URL": door.URL(), "CONSUMER_URL": consumer.URL(), "DB_URL": through}
	query := s.Service("query-service", peers)
	s.Ready(query)
	v := newVisitor(t, query.URL())

	v.visits("empty", "/", "/tickets", "/records", "/endpoints", "/projections", "/projections/timestamps", "/projections/timestamps/rebuild", "/dead-letters", "/glossary", "/nothing-here")

	applied, rejected := fillPages(t, s, door.URL())
	for _, place := range rejected {
		v.waits("/api/v1/deadletters/"+url.PathEscape(place), http.StatusOK)
	}
	unknown := uuid.NewString()
	v.visits("loaded", "/", "/tickets/"+applied.ID+"?position="+applied.Position, "/tickets/"+unknown, "/tickets/"+uuid.NewString()+"?position="+rejected[0],
		"/records", "/projections", "/projections/timestamps", "/dead-letters", "/dead-letters?q=none", "/dead-letters/"+rejected[0])
	v.open("/endpoints")
	v.fill("#url", "https://example.org/"+strings.Repeat("long-", 40))
	v.leave("#add button")
	v.sees("The endpoint was added.")
	v.looks("loaded", "an endpoint")
	v.visits("loaded", "/endpoints")

	v.open("/")
	v.fill("#at", "yesterday")
	v.leave(".stamp button")
	v.looks("wrong input", "a timestamp")
	v.visits("wrong input", "/tickets?id=none")
	v.open("/endpoints")
	v.fill("#url", "ftp://example.org/")
	v.fill("#interval", "1s")
	v.leave("#add button")
	v.looks("wrong input", "an endpoint")
	v.open("/projections/timestamps/rebuild")
	v.fill("#rate_limit", "none")
	v.leave("form.start button")
	v.looks("wrong input", "a rebuild")
	v.open("/dead-letters/" + rejected[0])
	v.fill("#payload", "still no JSON")
	v.leave(`form[action="/dead-letters/redrive"] button`)
	v.looks("wrong input", "a redrive")
	v.open("/dead-letters")
	v.click(`.letter input[type="checkbox"]`)
	v.leave(`#letters .acts button`)
	v.looks("loaded", "a redrive of several")
	v.open("/dead-letters")
	v.click(`.letter input[type="checkbox"]`)
	v.leave(`#letters [formaction="/dead-letters/discard"]`)
	v.sees("What is lost")
	v.looks("loaded", "a discard of several")

	v.open("/projections/timestamps/rebuild")
	v.fill("#rate_limit", "1")
	v.leave("form.start button")
	v.sees("Reading the log into new tables")
	v.visits("rebuilding", "/", "/projections/timestamps", "/projections/timestamps/rebuild")
	v.click("#cancel summary")
	v.leave("#cancel button")
	v.sees("Start a rebuild")
	v.leave("form.start button")
	v.sees("Roll back to generation", ">Verify<", ">Swap<")
	v.looks("rebuilt", "the rebuild")
	v.click(`[name="replace_standby"]`)
	v.leave("form.start button")
	v.sees("This drops generation")
	v.looks("rebuilt", "a standby that would be dropped")

	keys, file := map[string]string{}, filepath.Join(t.TempDir(), "keys")
	for _, scope := range []string{"read", "admin"} {
		_, keys[scope], err = auth.Create(file, scope, []string{scope}, time.Time{}, time.Now())
		require.NoError(t, err)
	}
	locked := s.Service("query-service", map[string]string{"COMMAND_URL": door.URL(), "CONSUMER_URL": consumer.URL(), "API_KEYS_FILE": file})
	s.Ready(locked)
	guest := newVisitor(t, locked.URL())
	guest.visits("login", "/login")
	guest.fill("#key", "tmk_wrong")
	guest.leave("main button")
	guest.looks("login", "a wrong key")
	guest.fill("#key", keys["read"])
	guest.leave("main button")
	guest.visits("a key that reads", "/", "/endpoints", "/projections/timestamps", "/projections/timestamps/rebuild", "/dead-letters", "/dead-letters/"+rejected[0])

	v.open("/projections/timestamps/rebuild")
	require.NoError(t, consumer.Kill())
	v.sees("no rebuild can be started") // an open page says so by itself
	pending, err := s.Client.Stamp(t.Context(), door.URL(), "")
	require.NoError(t, err)
	v.open("/")
	v.sees("consumer-service is down; consumer lag unknown")
	v.looks("consumer-service down", "/")
	v.visits("consumer-service down", "/projections", "/projections/timestamps", "/projections/timestamps/rebuild", "/tickets/"+pending.ID+"?position="+pending.Position)

	require.NoError(t, door.Kill())
	v.open("/")
	v.leave(".stamp button")
	v.looks("command-service down", "a timestamp")

	database.Cut()
	v.open("/")
	v.sees("The projections cannot be read", "the connection to the database was lost")
	v.visits("database down", "/", "/projections", "/projections/timestamps/rebuild", "/tickets/"+applied.ID)
	database.Pass()
	v.waits("/api/v1/projections", http.StatusOK)

	v.open("/projections/timestamps")
	require.NoError(t, query.Kill())
	requireBody(v.browser, `class="stale"`, true)
	v.looks("query-service down", "an open page")
}

// fillPages leaves rows, a dead letter with a long payload and one that is no text.
func fillPages(t *testing.T, s *story.Story, door string) (applied story.Ticket, rejected []string) {
	t.Helper()
	applied, err := s.Client.Stamp(t.Context(), door, "2009-09-28T21:03:12+02:00")
	require.NoError(t, err)
	for _, value := range []string{`{"command_id":"` + uuid.NewString() + `","event_timestamp":"` + strings.Repeat("long and broken ", 300) + `"}`, "\x00\xff\xfe", "short"} {
		written, err := s.Log.Write(story.Message{Partition: story.AnyPartition, Value: []byte(value)})
		require.NoError(t, err)
		rejected = append(rejected, written[0].Position())
	}
	more := make([]story.Message, 60) // so that a rebuild with a rate limit lasts while it is looked at
	for i := range more {
		more[i] = story.Message{Partition: story.AnyPartition, Value: []byte(`{"command_id":"` + uuid.NewString() + `","event_timestamp":"2026-11-03T00:00:00Z"}`)}
	}
	_, err = s.Log.Write(more...)
	require.NoError(t, err)
	return applied, rejected
}

// visitor is somebody who looks at pages in each of the ways in which they are looked at.
type visitor struct {
	*browser
	axe      string
	pictures string // where pictures are kept; empty for none
}

func newVisitor(t *testing.T, base string) *visitor {
	t.Helper()
	axe, err := stack.Axe(t.Context())
	require.NoError(t, err)
	return &visitor{browser: newBrowser(t, base, 1440, true), axe: axe, pictures: os.Getenv("SCREENSHOTS")}
}

// waits asks until the service answers with that status.
func (v *visitor) waits(path string, status int) {
	v.t.Helper()
	client := story.NewClient(seenWithin)
	defer client.Close()
	ctx, cancel := context.WithTimeout(v.t.Context(), seenWithin)
	defer cancel()
	_, err := client.Until(ctx, status, v.base+path)
	require.NoError(v.t, err)
}

func (v *visitor) visits(state string, paths ...string) {
	v.t.Helper()
	for _, path := range paths {
		v.open(path)
		v.looks(state, path)
		v.looksWithoutScript(state, path)
	}
}

// looksWithoutScript keeps pictures of a page as it is where scripts are off. axe-core is a script itself: it judges the same
// page in looks.
func (v *visitor) looksWithoutScript(state, path string) {
	v.t.Helper()
	if v.pictures == "" {
		return
	}
	scripts := func(off bool) {
		_, err := chromedp.Call(v.tab, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: off})
		require.NoError(v.t, err)
	}
	scripts(true)
	defer scripts(false)
	v.do(chromedp.Navigate(v.base + path))
	for _, width := range []int64{390, 1440} {
		v.do(chromedp.EmulateViewport(width, 800))
		v.keepPicture(fmt.Sprintf("%s %s %d without script", state, path, width))
	}
}

// looks has axe-core judge the page that is shown. What it finds ends nothing, so that one run tells everything.
func (v *visitor) looks(state, what string) {
	v.t.Helper()
	v.do(chromedp.Evaluate[chromedp.Void](v.axe))
	for _, width := range []int64{390, 1440} {
		v.width = width
		v.do(chromedp.EmulateViewport(width, 800))
		v.fits(state + ", " + what)
		for _, scheme := range []string{"dark", "light"} {
			_, err := chromedp.Call(v.tab, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
				{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"},
			}})
			require.NoError(v.t, err)
			for _, f := range v.judged(width, scheme) {
				v.t.Errorf("%s, %s, %d wide, %s: %s", state, what, width, scheme, f)
			}
			v.keepPicture(fmt.Sprintf("%s %s %d %s", state, what, width, scheme))
		}
	}
}

// judged is what axe-core finds: by every rule at a desk in light colours, and else by the rules that look at what differs.
func (v *visitor) judged(width int64, scheme string) []string {
	v.t.Helper()
	rules := ""
	switch {
	case width == 390 && scheme == "dark":
		return nil
	case width == 390:
		rules = `, runOnly: ["scrollable-region-focusable", "target-size", "bypass", "region"]`
	case scheme == "dark":
		rules = `, runOnly: ["color-contrast"]`
	}
	ctx, cancel := context.WithTimeout(v.tab, seenWithin)
	defer cancel()
	findings, err := chromedp.Run(ctx, chromedp.Evaluate[[]string](`axe.run(document, { resultTypes: ["violations"]`+rules+` }).then((r) => r.violations.flatMap((f) => f.nodes.map((n) => f.id + ": " + n.html.slice(0, 200) + " " + (n.any[0] || n.all[0] || n.none[0] || {}).message)))`, chromedp.EvalAwaitPromise))
	require.NoError(v.t, err)
	return findings
}

func (v *visitor) keepPicture(name string) {
	v.t.Helper()
	if v.pictures == "" {
		return
	}
	png, err := chromedp.Run(v.tab, chromedp.FullScreenshot(100))
	require.NoError(v.t, err)
	name = strings.NewReplacer("/", "_", "?", "_", " ", "-").Replace(name)
	require.NoError(v.t, os.WriteFile(filepath.Join(v.pictures, name[:min(len(name), 120)]+strconv.Itoa(len(name))+".png"), png, 0o600))
}
