package web

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/query-service/internal/deadletter"
	"github.com/tidemark/tidemark/query-service/internal/peer"
	"github.com/tidemark/tidemark/query-service/internal/projection"
	command "github.com/tidemark/tidemark/shared/api/command"
	"github.com/tidemark/tidemark/shared/instant"
	"github.com/tidemark/tidemark/shared/position"
)

// choice is what a form has chosen, and what goes on to the next step with it.
type choice struct {
	Positions []string // at most mostInBulk
	Limited   bool     // the search finds more
	Search    letterFilter
	Note      string
	Dropped   []droppedLetter // was chosen and has been decided on
	Refused   *peer.Refusal
}

type droppedLetter struct{ Position, Why string }

// Back is the list that the choice was made in.
func (v choice) Back() string { return v.Search.With(v.Search.State) }

// Count is how many are chosen.
func (v choice) Count() int { return len(v.Positions) }

// keepOpen drops what has been decided on: as the tables say, or as command-service does, which may know more.
func (v *choice) keepOpen(letters []letterView) []letterView {
	decided := map[string]string{}
	for _, l := range letters {
		if !l.Open() {
			decided[l.Position.String()] = fmt.Sprintf("it was %s at %s", l.State(), instant.Format(l.Decision.At))
		}
	}
	if v.Refused != nil {
		for _, e := range v.Refused.Letters {
			if e.Decided != nil {
				decided[e.Position] = e.Reason
			}
		}
	}
	v.Positions = nil
	return slices.DeleteFunc(letters, func(l letterView) bool {
		at := l.Position.String()
		why, dropped := decided[at]
		if dropped {
			v.Dropped = append(v.Dropped, droppedLetter{at, why})
		} else {
			v.Positions = append(v.Positions, at)
		}
		return dropped
	})
}

type reviewView struct {
	Letters       []reviewLetter // the first of them, with their payloads
	Find, Replace string         // applied to what is shown
	Each          bool           // each payload can be edited
	Changed       int            // payloads that the replacement changes
	Unseen        bool           // it was sent with a replacement that had not been shown
	Replacing     bool           // the replacement is another than the one that was made in the payloads that were sent
	Overrides     bool           // one is of a kind whose redriven command wins over later ones
	LeftOut       int            // letters that were chosen and can only be discarded
	choice
}

type reviewLetter struct {
	letterView
	New   string
	Wrong string // why command-service refused it
}

// More is how many are not shown.
func (v reviewView) More() int { return len(v.Positions) - len(v.Letters) }

// review shows what was chosen in the list with what it would be redriven as: a form of its own, since
// a thousand payloads are not edited on a list.
func (p *Pages) review(c *gin.Context) {
	chosen, ok := p.chosen(c)
	if !ok {
		return
	}
	p.showReview(c, http.StatusOK, reviewView{choice: chosen, Find: c.PostForm("find"), Replace: c.PostForm("replace"), Replacing: replacing(c)}, editedPayloads(c, chosen.Positions))
}

// showReview fills v with the letters; edited has payloads that were sent already.
func (p *Pages) showReview(c *gin.Context, status int, v reviewView, edited map[string]string) {
	letters, ok := p.read(c, v.Positions)
	if !ok {
		return
	}
	letters = v.keepOpen(letters)
	redrivable := slices.DeleteFunc(slices.Clone(letters), func(l letterView) bool { return !l.Redrivable() })
	if v.LeftOut = len(letters) - len(redrivable); v.LeftOut > 0 {
		if letters, v.Positions = redrivable, nil; len(letters) == 0 {
			p.choiceAgain(c, &peer.Refusal{Status: http.StatusBadRequest, Detail: "what is chosen can only be discarded: its topic is not written by command-service, so there is no command to redrive"})
			return
		}
		for _, l := range letters {
			v.Positions = append(v.Positions, l.Position.String())
		}
	}
	wrong := map[string]string{}
	if v.Refused != nil {
		for _, e := range v.Refused.Letters {
			wrong[e.Position] = e.Reason
		}
	}
	v.Each = len(letters) <= mostEditable
	v.Unseen = v.Unseen && len(letters) > 0
	for _, l := range letters {
		v.Overrides = v.Overrides || l.Overrides()
		r := reviewLetter{letterView: l, New: l.corrected(v.Find, v.Replace), Wrong: wrong[l.Position.String()]}
		changed := l.Editable() && r.New != l.Shown
		if sent, was := edited[l.Position.String()]; was {
			r.New = sent
			if v.Replacing {
				r.New = replaceIn(sent, v.Find, v.Replace)
				changed = r.New != sent
			}
		}
		if changed {
			v.Changed++
		}
		if len(v.Letters) < mostEditable && (v.Each || len(wrong) == 0 || r.Wrong != "") {
			v.Letters = append(v.Letters, r)
		}
	}
	p.render(c, status, "review", layout{Title: "Redrive dead letters", Here: "/dead-letters", Body: v})
}

// chosen is what the form names: the letters that were ticked, or the open ones that the search finds.
func (p *Pages) chosen(c *gin.Context) (choice, bool) {
	v := choice{
		Positions: c.PostFormArray("position"), Limited: c.PostForm("limited") != "", Note: strings.TrimSpace(c.PostForm("note")),
		Search: readFilter(func(name string) string { return c.PostForm("search_" + name) }),
	}
	if c.PostForm("all") != "" {
		open := v.Search
		open.State = deadletter.Open
		v.Positions = v.Positions[:0]
		for after := (&position.Position{}); after != nil && len(v.Positions) <= mostInBulk; {
			var letters []deadletter.DeadLetter
			var next *position.Position
			f := open.filter(deadletter.ByPosition)
			err := p.Reader.Read(c.Request.Context(), projection.Want{}, f.Scope(), func(ctx context.Context, s *projection.Snapshot) (err error) {
				letters, next, err = deadletter.Search(ctx, s, f, *after, mostInBulk+1-len(v.Positions))
				return err
			})
			if p.failed(c, err) {
				return choice{}, false
			}
			for _, l := range letters {
				v.Positions = append(v.Positions, l.Position.String())
			}
			after = next
		}
		if v.Limited = len(v.Positions) > mostInBulk; v.Limited {
			v.Positions = v.Positions[:mostInBulk]
		}
	}
	positions := v.Positions
	if !c.Request.PostForm.Has("payload") { // with payloads, each stands beside its own
		inLogOrder(positions)
	}
	switch {
	case len(positions) == 0:
		p.choiceAgain(c, &peer.Refusal{Status: http.StatusBadRequest, Detail: "no dead letter is chosen: tick some in the list and send it again"})
	case len(positions) > mostInBulk:
		p.choiceAgain(c, &peer.Refusal{Status: http.StatusBadRequest, Detail: fmt.Sprintf("%d dead letters are chosen: at most %d are taken at once", len(positions), mostInBulk)})
	default:
		return v, true
	}
	return choice{}, false
}

// inLogOrder sorts what was ticked in a list that has the newest first. Commands in the place of letters of one endpoint are
// applied as they are written, so the last one must be that of the newest letter. What is no position is refused later.
func inLogOrder(positions []string) {
	slices.SortStableFunc(positions, func(a, b string) int {
		x, errX := position.Parse(a)
		y, errY := position.Parse(b)
		if errX != nil || errY != nil {
			return 0
		}
		return cmp.Or(strings.Compare(x.Topic, y.Topic), cmp.Compare(x.Partition, y.Partition), cmp.Compare(x.Offset, y.Offset))
	})
}

// read reads the letters at these positions, in their order, in one snapshot.
func (p *Pages) read(c *gin.Context, positions []string) ([]letterView, bool) {
	views := make([]letterView, 0, len(positions))
	places := make([]position.Position, len(positions))
	for i, text := range positions {
		var err error
		if places[i], err = position.Parse(text); err != nil {
			p.choiceAgain(c, &peer.Refusal{Status: http.StatusBadRequest, Detail: err.Error()})
			return nil, false
		}
	}
	var missing position.Position
	err := p.Reader.Read(c.Request.Context(), projection.Want{}, projection.Every(), func(ctx context.Context, s *projection.Snapshot) error {
		for _, place := range places {
			l, err := deadletter.At(ctx, s, place)
			if err != nil {
				missing = place
				return err
			}
			views = append(views, viewLetter(l))
		}
		return nil
	})
	if errors.Is(err, deadletter.ErrNotFound) {
		p.choiceAgain(c, &peer.Refusal{Status: http.StatusBadRequest, Detail: fmt.Sprintf("there is no dead letter at %s: choose from what there is now", missing)})
		return nil, false
	}
	return views, !p.failed(c, err)
}

// redrive writes new commands in the place of dead letters, with the payloads of the form or, where it has none
// for a position, the letter's own after the replacement. One letter leads to its ticket, several to
// the list.
func (p *Pages) redrive(c *gin.Context) {
	ctx := c.Request.Context()
	chosen, ok := p.chosen(c)
	if !ok {
		return
	}
	positions := chosen.Positions
	edited := editedPayloads(c, positions)
	find, replace, note := c.PostForm("find"), c.PostForm("replace"), chosen.Note
	single := c.PostForm("single") != ""
	if replacing(c) {
		p.showReview(c, http.StatusOK, reviewView{choice: chosen, Find: find, Replace: replace, Unseen: true, Replacing: true}, edited)
		return // nothing is redriven that was not shown before
	}
	letters := make([]command.Letter, 0, len(positions))
	if len(edited) == 0 {
		views, ok := p.read(c, positions)
		if !ok {
			return
		}
		for _, l := range views {
			letters = append(letters, command.Letter{Position: l.Position.String(), Payload: l.corrected(find, replace)})
		}
	} else {
		for _, at := range positions {
			letters = append(letters, command.Letter{Position: at, Payload: edited[at]})
		}
	}
	key, err := retryKey(c)
	var done peer.Decision
	if err == nil {
		done, err = p.Peers.Redrive(ctx, letters, note, key)
	}
	if refused := p.refusal(ctx, err); refused != nil {
		if single {
			p.showLetter(c, refused.Status, positions[0], deadLetterView{Payload: letters[0].Payload, Note: note, Refused: refused})
			return
		}
		chosen.Refused = refused
		p.showReview(c, refused.Status, reviewView{choice: chosen, Find: find, Replace: replace}, edited)
		return
	}
	if len(done.Results) == 1 && done.Results[0].Ticket != nil && done.Results[0].Command != nil {
		r := done.Results[0]
		c.Redirect(http.StatusSeeOther, "/tickets/"+url.PathEscape(*r.Ticket)+"?position="+*r.Command)
		return
	}
	c.Redirect(http.StatusSeeOther, chosen.after("redriven", done.Results))
}

type discardView struct {
	choice
	Reasons []reasonCount
}

// reasonCount is how many of the chosen letters have a reason.
type reasonCount struct {
	Projection, Code string
	Count            int
}

// showDiscard is the step before a discard: it says what is lost and how many.
func (p *Pages) showDiscard(c *gin.Context, status int, v discardView) {
	letters, ok := p.read(c, v.Positions)
	if !ok {
		return
	}
	for _, l := range v.keepOpen(letters) {
		i := slices.IndexFunc(v.Reasons, func(r reasonCount) bool { return r.Projection == l.Projection && r.Code == l.ReasonCode })
		if i < 0 {
			i, v.Reasons = len(v.Reasons), append(v.Reasons, reasonCount{Projection: l.Projection, Code: l.ReasonCode})
		}
		v.Reasons[i].Count++
	}
	p.render(c, status, "discard", layout{Title: "Discard dead letters", Here: "/dead-letters", Body: v})
}

// discard closes dead letters without a command: once the form says that what is lost was shown.
func (p *Pages) discard(c *gin.Context) {
	ctx := c.Request.Context()
	chosen, ok := p.chosen(c)
	if !ok {
		return
	}
	positions, note := chosen.Positions, chosen.Note
	single := c.PostForm("single") != "" // its page says what is lost
	if !single && c.PostForm("sure") == "" {
		p.showDiscard(c, http.StatusOK, discardView{choice: chosen})
		return
	}
	key, err := retryKey(c)
	var done peer.Decision
	if err == nil {
		done, err = p.Peers.Discard(ctx, positions, note, key)
	}
	if refused := p.refusal(ctx, err); refused != nil {
		if single {
			p.showLetter(c, refused.Status, positions[0], deadLetterView{Note: note, Refused: refused})
			return
		}
		chosen.Refused = refused
		p.showDiscard(c, refused.Status, discardView{choice: chosen})
		return
	}
	c.Redirect(http.StatusSeeOther, chosen.after("discarded", done.Results))
}

// after is the list, once it has every one of the decisions in it. They lie in several partitions: the last one of each says enough.
func (v choice) after(done string, decided []command.DecisionResult) string {
	last := map[int32]position.Position{}
	for _, d := range decided {
		if at, err := position.Parse(d.Decision); err == nil && at.Offset >= last[at.Partition].Offset {
			last[at.Partition] = at
		}
	}
	q := v.Search.query()
	q.Set("done", done)
	q.Set("count", strconv.Itoa(len(decided)))
	if v.Limited {
		q.Set("left", "1")
	}
	var positions []string
	for _, partition := range slices.Sorted(maps.Keys(last)) {
		positions = append(positions, last[partition].String())
	}
	if len(positions) > 0 {
		q.Set("position", strings.Join(positions, ","))
	}
	return lettersPath(q)
}

// awaitDecisions waits until readers see every decision that the address names, and returns the last one as what the page itself
// waits for. What is no position is passed over: the page then shows what there is now.
func (p *Pages) awaitDecisions(c *gin.Context) (want projection.Want, err error) {
	ctx := c.Request.Context()
	until := time.Now().Add(projection.DefaultWait)
	for _, at := range strings.Split(c.Query("position"), ",") {
		if want.Asked() {
			if err := p.Reader.Read(ctx, want, projection.Every(), func(context.Context, *projection.Snapshot) error { return nil }); err != nil {
				return want, err
			}
		}
		if want, err = p.Reader.Want(ctx, "", at, "", max(0, time.Until(until))); err != nil {
			want = projection.Want{}
		}
	}
	return want, nil
}
