package httpapi

import (
	"fmt"
	"math"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidemark/tidemark/shared/auth"
	"github.com/tidemark/tidemark/shared/problem"
)

// The limit of failed attempts from one address: a burst for somebody who mistypes, then one every two seconds. It
// bounds the load that wrong keys make; nobody can guess a key at any rate (see package auth). A right key passes in
// any case, since the address may be that of a proxy that everybody shares.
const (
	failuresPerSecond = 0.5
	failuresAtOnce    = 20
)

// access decides which requests are let in.
type access struct {
	scopes   scopes
	keys     *auth.Keyring // nil where nobody is asked for a key
	limits   *auth.Limits  // nil where nobody is limited
	failures *auth.Limits
	key      func(*gin.Context) string
	origin   *http.CrossOriginProtection
	refuse   func(*gin.Context, problem.Problem)
	refused  *prometheus.CounterVec
}

func newAccess(o Options, s scopes, keys *auth.Keyring) *access {
	a := &access{
		scopes: s, keys: keys, key: o.Key, refuse: o.Refuse,
		failures: auth.NewLimits(failuresPerSecond, failuresAtOnce),
		origin:   http.NewCrossOriginProtection(),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidemark_http_refused_total", Help: "Requests that were not let in, by reason: key, scope, rate, origin or host.",
		}, []string{"reason"}),
	}
	if o.HTTP.RateLimit > 0 {
		a.limits = auth.NewLimits(float64(o.HTTP.RateLimit), 2*o.HTTP.RateLimit)
	}
	for _, reason := range []string{"key", "scope", "rate", "origin", "host"} { // there from the start, so that an alert sees the first one
		a.refused.WithLabelValues(reason)
	}
	if a.key == nil {
		a.key = func(c *gin.Context) string { return auth.Bearer(c.Request) }
	}
	if a.refuse == nil {
		a.refuse = Fail
	}
	o.Registry.MustRegister(a.refused, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tidemark_api_keys_stale", Help: "1 while the keys file cannot be used and the keys of its last good version are still used.",
	}, func() float64 {
		if keys != nil && keys.Stale() {
			return 1
		}
		return 0
	}), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tidemark_api_keys_lost", Help: "Keys that an earlier version of the keys file had since the start, and the one in use has not: was it cut?",
	}, func() float64 {
		if keys == nil {
			return 0
		}
		return float64(keys.Lost())
	}))
	return a
}

// serve lets a request in or refuses it. Probes are never limited: an answer of 429 would take the service
// out of rotation.
func (a *access) serve(c *gin.Context) {
	// A page of another site must not make a browser post here: the browser would send its cookie along, and
	// where no key is asked for, being on this host would be enough.
	if err := a.origin.Check(c.Request); err != nil {
		a.deny(c, "origin", problem.Problem{Status: http.StatusForbidden, Detail: "this was sent from another site's page; open this service's own page and send it from there"})
		return
	}
	pattern, now := c.FullPath(), time.Now()
	scope, listed := auth.None, true
	if a.keys != nil && pattern != "" { // without a pattern the answer is 404 or 405
		scope, listed = a.scopes.scopeOf(c.Request.Method, pattern)
	}
	var caller auth.Caller
	if scope != auth.None {
		var wait time.Duration
		var ok bool
		if caller, wait, ok = a.admit(c, a.key(c), now); !ok {
			if wait > 0 {
				a.tooMany(c, wait)
				return
			}
			c.Header("WWW-Authenticate", `Bearer realm="tidemark"`)
			detail := "this needs an API key: send it as Authorization: Bearer tmk_…"
			if a.key(c) != "" {
				detail = "unknown, expired or revoked key: send one that is active as Authorization: Bearer tmk_…"
			}
			a.deny(c, "key", problem.Problem{Status: http.StatusUnauthorized, Detail: detail})
			return
		}
		c.Request = c.Request.WithContext(auth.WithCaller(c.Request.Context(), caller))
	}
	if wait, ok := a.takeFromLimit(c, caller, now); !ok && pattern != "/health" && pattern != "/ready" {
		a.tooMany(c, wait)
		return
	}
	if !listed || !caller.May(scope) {
		a.deny(c, "scope", problem.Problem{Status: http.StatusForbidden, Detail: caller.Lacks(scope)})
		return
	}
	c.Next()
}

// admit judges a key, and counts a wrong one.
func (a *access) admit(c *gin.Context, key string, now time.Time) (caller auth.Caller, wait time.Duration, ok bool) {
	if caller, ok = a.keys.Check(key, now); ok {
		return caller, 0, true
	}
	wait, _ = a.failures.Take(auth.Network(c.ClientIP()), now)
	return auth.Caller{}, wait, false
}

// takeFromLimit counts one request against the limit of the caller, or of the address where there is no key. A request
// from this host without a key is not limited, since `tidemark up` and the benchmarks send those. It reports how long
// to wait where the limit is reached.
func (a *access) takeFromLimit(c *gin.Context, caller auth.Caller, now time.Time) (time.Duration, bool) {
	if a.limits == nil {
		return 0, true
	}
	name := "key " + caller.ID
	if caller.ID == "" {
		address := c.ClientIP()
		if loopback(address) {
			return 0, true
		}
		name = auth.Network(address)
	}
	return a.limits.Take(name, now)
}

func (a *access) tooMany(c *gin.Context, wait time.Duration) {
	seconds := strconv.Itoa(max(1, int(math.Ceil(wait.Seconds()))))
	c.Header("Retry-After", seconds)
	a.deny(c, "rate", problem.Problem{Status: http.StatusTooManyRequests, Detail: fmt.Sprintf("too many requests from here: send it again in %s s", seconds)})
}

func (a *access) deny(c *gin.Context, reason string, p problem.Problem) {
	a.refused.WithLabelValues(reason).Inc()
	a.refuse(c, p)
	c.Abort()
}

func loopback(address string) bool {
	ip := net.ParseIP(address)
	return ip != nil && ip.IsLoopback()
}
