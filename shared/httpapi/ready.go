package httpapi

import (
	"maps"
	"net/http"
	"sync"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"
)

// Readiness keeps, for each part of a service, the reason why it cannot do its work. The service is ready when no
// part has a reason. It is safe for concurrent use.
type Readiness struct {
	mu      sync.Mutex
	reasons map[string]string
	known   map[string]struct{} // every part that ever reported
}

// NewReadiness is unready at first: each part has the reason "starting" until it reports.
func NewReadiness(parts ...string) *Readiness {
	r := &Readiness{reasons: map[string]string{}, known: map[string]struct{}{}}
	for _, p := range parts {
		r.known[p] = struct{}{}
		r.reasons[p] = "starting"
	}
	return r
}

// Ready clears the part's reason.
func (r *Readiness) Ready(part string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.reasons, part)
}

// Unready keeps the service out of rotation for reason, a sentence that an operator can act on.
func (r *Readiness) Unready(part, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reasons[part] = reason
	r.known[part] = struct{}{}
}

// Reasons returns what is missing; none means ready.
func (r *Readiness) Reasons() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.reasons)
}

func (r *Readiness) serve(c *gin.Context) {
	c.Header("Cache-Control", "no-store")
	reasons := r.Reasons()
	if len(reasons) > 0 {
		c.JSON(http.StatusServiceUnavailable, gin.H{"status": "DOWN", "missing": reasons})
		return
	}
	c.JSON(http.StatusOK, gin.H{"status": "UP"})
}

var partReady = prometheus.NewDesc("tidemark_ready", "1 where this part of the service lets it do its work, 0 where it does not; /ready says why.", []string{"part"}, nil)

// Describe is prometheus.Collector's.
func (r *Readiness) Describe(out chan<- *prometheus.Desc) { out <- partReady }

// Collect is prometheus.Collector's: the parts are as many as the service has names for.
func (r *Readiness) Collect(out chan<- prometheus.Metric) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for part := range r.known {
		value := 1.0
		if _, missing := r.reasons[part]; missing {
			value = 0
		}
		out <- prometheus.MustNewConstMetric(partReady, prometheus.GaugeValue, value, part)
	}
}
