package integration_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/shared/loop"
)

// seenWithin is the limit of whatever a page must come to show.
const seenWithin = 60 * time.Second

// samePages is why what a browser sees is looked at on one broker only.
const samePages = "pages know nothing of brokers: they are looked at on Apache Kafka"

// browser is one tab of a headless Chromium of its own.
type browser struct {
	t      *testing.T
	tab    context.Context //nolint:containedctx // the driver knows a tab by its context
	base   string
	width  int64
	script bool
	mu     sync.Mutex
	said   []string // what was written to the console
}

// newBrowser starts one, so many pixels wide, for the pages at base. It ends with the test.
func newBrowser(t *testing.T, base string, width int64, script bool) *browser {
	t.Helper()
	// Chromium's own sandbox needs rights that a container or root does not have; the pages are this repository's.
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()))
	allocator, end := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(end)
	tab, end := chromedp.NewContext(allocator)
	t.Cleanup(end)
	b := &browser{t: t, tab: tab, base: base, width: width, script: script}
	messages := chromedp.Console(tab)
	require.NoError(t, chromedp.Do(tab, chromedp.EmulateViewport(width, 800)), "Chromium is needed: tools/setup installs it")
	_, err := chromedp.Call(tab, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: !script})
	require.NoError(t, err)
	var listening sync.WaitGroup
	listening.Go(func() {
		for m, err := range messages {
			if err != nil {
				return
			}
			b.mu.Lock()
			b.said = append(b.said, m.String())
			b.mu.Unlock()
		}
	})
	t.Cleanup(func() { end(); listening.Wait() })
	return b
}

func (b *browser) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.tab, seenWithin)
	defer cancel()
	for {
		err := chromedp.Do(ctx, steps...)
		// A live update put another in the node's place between its being found and its being used: nothing was done.
		if err != nil && strings.Contains(err.Error(), "Could not find node with given id") && ctx.Err() == nil {
			continue
		}
		require.NoError(b.t, err)
		return
	}
}

func (b *browser) open(path string) {
	b.t.Helper()
	b.do(chromedp.Navigate(b.base + path))
	b.fits(path)
}

// fits requires the page to be no wider than the screen.
func (b *browser) fits(what string) {
	b.t.Helper()
	size, err := chromedp.Call(b.tab, page.GetLayoutMetrics, cdp.Empty{})
	require.NoError(b.t, err)
	require.LessOrEqual(b.t, size.CSSContentSize.Width, float64(b.width), what)
}

func (b *browser) fill(field, text string) {
	b.t.Helper()
	b.do(chromedp.SetValue(chromedp.CSS(field), text))
}

func (b *browser) click(what string) {
	b.t.Helper()
	b.do(chromedp.Click(chromedp.CSS(what)))
}

func (b *browser) text(what string) string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.tab, seenWithin)
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.TextContent(chromedp.CSS(what)))
	require.NoError(b.t, err)
	return text
}

// sees waits until the page has all these words in its source as it is now.
func (b *browser) sees(words ...string) {
	b.t.Helper()
	for _, w := range words {
		b.until(w, true)
	}
	b.fits(words[0])
}

// finds opens a page that does not change by itself until it has these words.
func (b *browser) finds(path, words string) {
	b.t.Helper()
	limit := time.Now().Add(seenWithin)
	for {
		b.open(path)
		source, err := chromedp.Run(b.tab, chromedp.OuterHTML(chromedp.CSS("main")))
		require.NoError(b.t, err)
		if strings.Contains(source, words) {
			return
		}
		require.True(b.t, time.Now().Before(limit), "wanted %q in %s", words, source)
		time.Sleep(50 * time.Millisecond) // before it is opened again
	}
}

func (b *browser) seesNot(words string) {
	b.t.Helper()
	b.until(words, false)
}

func (b *browser) until(words string, there bool) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.tab, seenWithin)
	defer cancel()
	var source string
	for {
		// A page that is being left has no source for a moment.
		if now, err := chromedp.Run(ctx, chromedp.OuterHTML(chromedp.CSS("main"))); err == nil {
			source = now
			if strings.Contains(source, words) == there {
				return
			}
		}
		if loop.Sleep(ctx, 20*time.Millisecond) != nil {
			require.FailNowf(b.t, "the page does not come to it", "wanted %q (%v) in %s", words, there, source)
		}
	}
}

// mark marks the page that is shown; stays requires it to be the same still: renewed, and not loaded again.
func (b *browser) mark() {
	b.t.Helper()
	b.do(chromedp.SetAttributeValue(chromedp.CSS("body"), "data-mark", "x"))
}

func (b *browser) stays() {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.tab, seenWithin)
	defer cancel()
	marked, err := chromedp.Run(ctx, chromedp.AttributeValue(chromedp.CSS("body"), "data-mark"))
	require.NoError(b.t, err)
	require.Equal(b.t, b.script, marked.Exists, "with script a page is renewed, without it is loaded again")
}

// leave clicks what leads to another page, and waits until that one is shown.
func (b *browser) leave(what string) {
	b.t.Helper()
	b.mark()
	b.click(what)
	ctx, cancel := context.WithTimeout(b.tab, seenWithin)
	defer cancel()
	for {
		// A page that is being left has no body for a moment.
		if marked, err := chromedp.Run(ctx, chromedp.AttributeValue(chromedp.CSS("body"), "data-mark")); err == nil && !marked.Exists {
			return
		}
		require.NoError(b.t, loop.Sleep(ctx, 20*time.Millisecond), "no other page comes after %s", what)
	}
}

// complaints are what was written to the console, such as what the pages' policy forbids.
func (b *browser) complaints() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.said
}
