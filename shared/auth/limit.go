package auth

import (
	"net/netip"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"
)

// Limits is a table of token buckets by name, of bounded size: the bucket that was used least recently makes
// room for a new one. It is safe for concurrent use.
type Limits struct {
	rate    rate.Limit
	burst   int
	buckets *lru.Cache[string, *rate.Limiter]
}

// mostBuckets bounds a table: some 2 MB.
const mostBuckets = 10_000

// NewLimits gives each name perSecond events a second and burst at once.
func NewLimits(perSecond float64, burst int) *Limits { return newLimits(perSecond, burst, mostBuckets) }

func newLimits(perSecond float64, burst, most int) *Limits {
	buckets, _ := lru.New[string, *rate.Limiter](most) // it refuses a size below 1 only
	return &Limits{rate: rate.Limit(perSecond), burst: burst, buckets: buckets}
}

// Take takes one event of name at now. Where none is left it reports how long to wait for the next.
func (l *Limits) Take(name string, now time.Time) (wait time.Duration, ok bool) {
	limiter := l.bucket(name)
	r := limiter.ReserveN(now, 1)
	if wait = r.DelayFrom(now); wait > 0 {
		r.CancelAt(now) // who is refused does not pay
		return wait, false
	}
	return 0, true
}

func (l *Limits) bucket(name string) *rate.Limiter {
	if b, ok := l.buckets.Get(name); ok {
		return b
	}
	b := rate.NewLimiter(l.rate, l.burst)
	if first, ok, _ := l.buckets.PeekOrAdd(name, b); ok { // another request of the same name was first
		return first
	}
	return b
}

// Network names the part of an address that is limited as one: an IPv4 address, and the /64 of an IPv6
// address, of which one host has as many as it likes. What is no address names itself.
func Network(address string) string {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return address
	}
	a = a.Unmap().WithZone("")
	if a.Is4() {
		return a.String()
	}
	p, err := a.Prefix(64)
	if err != nil { // 64 bits fit every IPv6 address
		return address
	}
	return p.String()
}
