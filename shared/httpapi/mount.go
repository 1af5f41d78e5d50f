package httpapi

import (
	"net/http"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/swaggest/swgui"
	"github.com/swaggest/swgui/v5emb"

	"github.com/tidemark/tidemark/shared/telemetry"
)

// Mount adds what every service answers: GET /health (alive), /ready, /metrics, /openapi.yaml and
// /docs, the specification as a page.
func Mount(e *Engine, service string, ready *Readiness) {
	registry, spec := e.options.Registry, e.options.Spec
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), ready, telemetry.BuildInfo(service))
	e.GET("/health", func(c *gin.Context) { c.JSON(http.StatusOK, gin.H{"status": "UP"}) })
	e.GET("/ready", ready.serve)
	e.GET("/metrics", gin.WrapH(promhttp.HandlerFor(registry, promhttp.HandlerOpts{})))
	e.GET("/openapi.yaml", func(c *gin.Context) { c.Data(http.StatusOK, "application/yaml; charset=utf-8", spec) })
	page := gin.WrapH(v5emb.NewHandlerWithConfig(swgui.Config{Title: "Tidemark " + service, SwaggerJSON: "/openapi.yaml", BasePath: "/docs"}))
	e.GET("/docs", page)
	e.GET("/docs/*file", page)
}
