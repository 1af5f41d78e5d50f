// Package httpapi is query-service's JSON API: it decodes a request, calls the package that reads the answer, and maps
// the answer to the types of the specification, or an error to a problem.
package httpapi

import (
	"context"
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemark/tidemark/query-service/internal/deadletter"
	"github.com/tidemark/tidemark/query-service/internal/endpoint"
	"github.com/tidemark/tidemark/query-service/internal/generation"
	"github.com/tidemark/tidemark/query-service/internal/projection"
	"github.com/tidemark/tidemark/query-service/internal/recent"
	"github.com/tidemark/tidemark/query-service/internal/record"
	"github.com/tidemark/tidemark/query-service/internal/ticket"
	api "github.com/tidemark/tidemark/shared/api/query"
	sharedhttp "github.com/tidemark/tidemark/shared/httpapi"
	"github.com/tidemark/tidemark/shared/position"
	"github.com/tidemark/tidemark/shared/problem"
	ids "github.com/tidemark/tidemark/shared/ticket"
)

const defaultLimit = 50

// Options of the API. All are required.
type Options struct {
	Catalog  *projection.Catalog   // which projections there are
	Reader   *projection.Reader    // opens snapshots
	Records  *record.Finder        // finds records by their ticket
	Tickets  *ticket.Finder        // says what became of tickets
	Pacer    *projection.Pacer     // how fast projections go
	Failures *Failures             // which error is which problem
	Registry prometheus.Registerer // where the metrics of reads are registered
	Streams  *Streams              // the event streams that are open
}

// Server answers the routes of the specification.
type Server struct {
	catalog     *projection.Catalog
	reader      *projection.Reader
	records     *record.Finder
	endpoints   *endpoint.Finder
	letters     *deadletter.Finder
	tickets     *ticket.Finder
	pacer       *projection.Pacer
	failures    *Failures
	reads       *prometheus.CounterVec
	streams     *Streams
	statuses    *recent.Value[[]projection.Status]     // for streams
	generations *recent.Value[[]generation.Generation] // for streams
}

var _ api.ServerInterface = (*Server)(nil)

// Mount adds the API to e.
func Mount(e *gin.Engine, o Options) {
	s := &Server{catalog: o.Catalog, reader: o.Reader, records: o.Records, endpoints: endpoint.NewFinder(o.Reader), letters: deadletter.NewFinder(o.Reader), tickets: o.Tickets, pacer: o.Pacer, failures: o.Failures, streams: o.Streams, reads: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tidemark_query_reads_total", Help: "Reads, by what was read and how it ended.",
	}, []string{"read", "outcome"})}
	s.statuses, s.generations = shared(s.readStatuses), shared(s.readGenerations)
	o.Registry.MustRegister(s.reads)
	e.UseRawPath = true // a position in a path is one segment, its slash escaped
	api.RegisterHandlersWithOptions(e, s, api.GinServerOptions{
		Middlewares: []api.MiddlewareFunc{noStore},
		ErrorHandler: func(c *gin.Context, err error, _ int) {
			which, _, _ := strings.Cut(err.Error(), ":") // what follows is the parser's own text
			sharedhttp.Fail(c, problem.Problem{Status: http.StatusBadRequest, Detail: which + ": the specification at /openapi.yaml says how it is written"})
		},
	})
}

func noStore(c *gin.Context) { c.Header("Cache-Control", "no-store") }

// GetTimestamp answers one record.
func (s *Server) GetTimestamp(c *gin.Context, id string, p api.GetTimestampParams) {
	key, ok := s.id(c, id)
	if !ok {
		return
	}
	want, ok := s.want(c, p.TidemarkPosition, p.Position, p.Wait)
	if !ok {
		return
	}
	found, err := s.records.Find(c.Request.Context(), want, key)
	if s.done(c, "record", "found", err) {
		c.PureJSON(http.StatusOK, timestamp(found))
	}
}

// ListTimestamps answers a page of records.
func (s *Server) ListTimestamps(c *gin.Context, p api.ListTimestampsParams) {
	var at record.Cursor
	newest := p.Order != nil && *p.Order == api.ListTimestampsParamsOrderNewest
	switch {
	case newest && (p.Before != nil || p.After != nil):
		s.refuse(c, "before and after name pages by id: order=newest has one page")
		return
	case p.Before != nil && p.After != nil:
		s.refuse(c, "before and after name two pages: keep one")
		return
	case p.Before != nil:
		id, ok := s.id(c, *p.Before)
		if !ok {
			return
		}
		at = record.Cursor{ID: id}
	case p.After != nil:
		id, ok := s.id(c, *p.After)
		if !ok {
			return
		}
		at = record.Cursor{ID: id, Above: true}
	}
	want, ok := s.want(c, p.TidemarkPosition, p.Position, p.Wait)
	if !ok {
		return
	}
	limit := orElse(p.Limit, defaultLimit)
	var page record.Page
	err := s.reader.Read(c.Request.Context(), want, projection.Of(record.Projection), func(ctx context.Context, snap *projection.Snapshot) (err error) {
		if newest {
			page.Records, err = record.Newest(ctx, snap, limit)
			return err
		}
		page, err = record.List(ctx, snap, at, limit)
		return err
	})
	if s.done(c, "records", "found", err) {
		c.PureJSON(http.StatusOK, timestampPage(page, limit))
	}
}

// GetTicket answers what became of a command. Nothing is waited for unless a wait is given.
func (s *Server) GetTicket(c *gin.Context, id string, p api.GetTicketParams) {
	key, ok := s.id(c, id)
	if !ok {
		return
	}
	wait := orElse(p.Wait, "0s")
	want, ok := s.want(c, p.TidemarkPosition, p.Position, &wait)
	if !ok {
		return
	}
	t, err := s.tickets.Find(c.Request.Context(), key, want)
	if s.done(c, "ticket", string(t.State), err) {
		c.PureJSON(http.StatusOK, ticketState(t))
	}
}

// SearchDeadLetters answers a page of those that are wanted.
func (s *Server) SearchDeadLetters(c *gin.Context, p api.SearchDeadLettersParams) {
	f := deadletter.Filter{
		State:      deadletter.State(orElse(p.State, api.SearchDeadLettersParamsStateOpen)),
		Projection: orElse(p.Projection, ""), Text: orElse(p.Q, ""), ReasonCode: orElse(p.ReasonCode, ""), Partition: p.Partition,
		Order: deadletter.Order(orElse(p.Order, api.SearchDeadLettersParamsOrderNewest)),
	}
	if !s.isText(c, f.Text) {
		return
	}
	var after position.Position
	if p.After != nil {
		var err error
		if after, err = position.Parse(*p.After); err != nil {
			s.refuse(c, "after: "+err.Error())
			return
		}
	}
	want, ok := s.want(c, p.TidemarkPosition, p.Position, p.Wait)
	if !ok {
		return
	}
	limit := orElse(p.Limit, defaultLimit)
	var letters []deadletter.DeadLetter
	var next *position.Position
	err := s.reader.Read(c.Request.Context(), want, f.Scope(), func(ctx context.Context, snap *projection.Snapshot) (err error) {
		letters, next, err = deadletter.Search(ctx, snap, f, after, limit)
		return err
	})
	if s.done(c, "dead_letters", "found", err) {
		c.PureJSON(http.StatusOK, searchPage(letters, next, f, limit))
	}
}

// isText refuses a search for what no payload's text can hold.
func (s *Server) isText(c *gin.Context, q string) bool {
	if utf8.ValidString(q) && !strings.ContainsRune(q, 0) {
		return true
	}
	s.refuse(c, "q: it is no text")
	return false
}

// SummariseDeadLetters answers how many there are of each reason, producer and hour.
func (s *Server) SummariseDeadLetters(c *gin.Context, p api.SummariseDeadLettersParams) {
	f := deadletter.Filter{
		State:      deadletter.State(orElse(p.State, api.SummariseDeadLettersParamsStateOpen)),
		Projection: orElse(p.Projection, ""), Text: orElse(p.Q, ""), ReasonCode: orElse(p.ReasonCode, ""), Partition: p.Partition,
	}
	if !s.isText(c, f.Text) {
		return
	}
	want, ok := s.want(c, p.TidemarkPosition, p.Position, p.Wait)
	if !ok {
		return
	}
	var sum deadletter.Summary
	err := s.reader.Read(c.Request.Context(), want, f.Scope(), func(ctx context.Context, snap *projection.Snapshot) (err error) {
		sum, err = deadletter.Summarise(ctx, snap, f)
		return err
	})
	if s.done(c, "dead_letters", "counted", err) {
		c.PureJSON(http.StatusOK, letterSummary(sum))
	}
}

// GetDeadLetter answers one with all of its payload.
func (s *Server) GetDeadLetter(c *gin.Context, letter string, p api.GetDeadLetterParams) {
	at, err := position.Parse(letter)
	if err != nil {
		s.refuse(c, err.Error())
		return
	}
	want, ok := s.want(c, p.TidemarkPosition, p.Position, p.Wait)
	if !ok {
		return
	}
	found, err := s.letters.Find(c.Request.Context(), want, at)
	if s.done(c, "dead_letter", "found", err) {
		c.PureJSON(http.StatusOK, deadLetter(found))
	}
}

// ListProjections answers how each projection is, in short.
func (s *Server) ListProjections(c *gin.Context, p api.ListProjectionsParams) {
	want, ok := s.want(c, p.TidemarkPosition, p.Position, p.Wait)
	if !ok {
		return
	}
	var all []projection.Status
	err := s.reader.Read(c.Request.Context(), want, projection.Every(), func(ctx context.Context, snap *projection.Snapshot) (err error) {
		all, err = projection.ReadStatuses(ctx, snap)
		return err
	})
	if s.done(c, "projections", "found", err) {
		c.PureJSON(http.StatusOK, projectionList(all))
	}
}

// GetProjection answers the status of one projection.
func (s *Server) GetProjection(c *gin.Context, name string, p api.GetProjectionParams) {
	want, ok := s.want(c, p.TidemarkPosition, p.Position, p.Wait)
	if !ok {
		return
	}
	var status projection.Status
	err := s.reader.Read(c.Request.Context(), want, projection.Of(name), func(ctx context.Context, snap *projection.Snapshot) (err error) {
		status, err = projection.ReadStatus(ctx, snap, snap.Of(name))
		return err
	})
	status.Pace = s.pacer.Pace(name)
	if s.done(c, "projection", "found", err) {
		c.PureJSON(http.StatusOK, projectionStatus(status))
	}
}

// ListGenerations answers the generations of one projection.
func (s *Server) ListGenerations(c *gin.Context, name string, p api.ListGenerationsParams) {
	want, ok := s.want(c, p.TidemarkPosition, p.Position, p.Wait)
	if !ok {
		return
	}
	list, err := generation.List(c.Request.Context(), s.reader, want, projection.Of(name))
	if s.done(c, "generations", "found", err) {
		c.PureJSON(http.StatusOK, generationList(name, list))
	}
}

// GetGeneration answers one generation.
func (s *Server) GetGeneration(c *gin.Context, name string, number int32, p api.GetGenerationParams) {
	want, ok := s.want(c, p.TidemarkPosition, p.Position, p.Wait)
	if !ok {
		return
	}
	g, err := generation.Get(c.Request.Context(), s.reader, want, name, int(number))
	if s.done(c, "generation", "found", err) {
		c.PureJSON(http.StatusOK, generationOf(g))
	}
}

func (s *Server) id(c *gin.Context, text string) (uuid.UUID, bool) {
	id, err := ids.Parse(text)
	if err != nil {
		s.refuse(c, err.Error())
	}
	return id, err == nil
}

func (s *Server) want(c *gin.Context, header, query, wait *string) (projection.Want, bool) {
	ctx := c.Request.Context()
	w, err := s.reader.Want(ctx, orElse(header, ""), orElse(query, ""), orElse(wait, ""), projection.DefaultWait)
	if err != nil {
		s.fail(c, s.failures.Of(ctx, err))
	}
	return w, err == nil
}

func (s *Server) refuse(c *gin.Context, detail string) {
	sharedhttp.Fail(c, problem.Problem{Status: http.StatusBadRequest, Detail: detail})
}

// done counts a read, and answers it where it ended in an error. It reports whether it did not.
func (s *Server) done(c *gin.Context, read, outcome string, err error) bool {
	if err == nil {
		s.reads.WithLabelValues(read, outcome).Inc()
		return true
	}
	f := s.failures.Of(c.Request.Context(), err)
	s.reads.WithLabelValues(read, f.Outcome).Inc()
	s.fail(c, f)
	return false
}

func (s *Server) fail(c *gin.Context, f Failure) {
	if f.RetryAfter != "" {
		c.Header("Retry-After", f.RetryAfter)
	}
	if f.Status == statusClientGone {
		c.AbortWithStatus(statusClientGone)
		return
	}
	sharedhttp.Fail(c, f.Problem)
}

func orElse[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}
