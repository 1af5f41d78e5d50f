package httpapi

import (
	"net/http"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/swaggest/swgui"
	"github.com/swaggest/swgui/v5emb"

	"github.com/tidemark/tidemark/shared/telemetry"
)

// Mount adds what every service answers: GET /health (alive), /ready, /metrics, /openapi.yaml and
// /docs, the specification as a page. An empty spec leaves the last two out.
func Mount(e *gin.Engine, service string, registry *prometheus.Registry, ready *Readiness, spec []byte) {
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), ready, telemetry.BuildInfo(service))
	e.GET("/health", func(c *gin.Context) { c.JSON(http.StatusOK, gin.H{"status": "UP"}) })
	e.GET("/ready", ready.serve)
	e.GET("/metrics", gin.WrapH(promhttp.HandlerFor(registry, promhttp.HandlerOpts{})))
	if len(spec) == 0 {
		return
	}
	e.GET("/openapi.yaml", func(c *gin.Context) { c.Data(http.StatusOK, "application/yaml; charset=utf-8", spec) })
	page := gin.WrapH(v5emb.NewHandlerWithConfig(swgui.Config{Title: "Tidemark " + service, SwaggerJSON: "/openapi.yaml", BasePath: "/docs"}))
	e.GET("/docs", page)
	e.GET("/docs/*file", page)
}
