package httpapi

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/problem"
)

// requireKnownHost refuses requests whose Host is neither loopback nor one of ALLOWED_HOSTS, where the service listens on
// loopback and asks nobody for a key.
//
// There, being on this machine is all that is asked of a caller, and the browser of whoever sits at it runs the pages of
// strangers. A page of evil.example may let its own name point to 127.0.0.1 once it is loaded (DNS rebinding). The browser then
// takes this service for evil.example, so that the page reads every answer and posts what it likes. What still tells such
// a request from others is its Host, which the page cannot choose.
//
// Every route is checked, probes and metrics included: who asks for them on loopback uses a loopback name. X-Forwarded-Host
// is not looked at, since a page can set it. The refusal has no data in it, and a plain page for a browser: the page would
// read whatever stands there.
func (a *access) requireKnownHost(h config.HTTP) gin.HandlerFunc {
	if a.keys != nil || !h.OnLoopback() {
		return func(c *gin.Context) { c.Next() }
	}
	allowed := map[string]bool{}
	for _, host := range h.AllowedHosts {
		allowed[canonicalHost(host)] = true
	}
	return func(c *gin.Context) {
		host := canonicalHost(c.Request.Host)
		if isLoopbackHost(host) || allowed[host] {
			c.Next()
			return
		}
		a.refused.WithLabelValues("host").Inc()
		failAsPage(c, problem.Problem{Status: http.StatusMisdirectedRequest, Detail: fmt.Sprintf(
			"the request is for host %.100q, and without API keys this answers only to loopback names such as 127.0.0.1 and localhost: use one of them, or list the host in ALLOWED_HOSTS", host)})
	}
}

// canonicalHost is a Host without its port and a final dot, in lower case; an IP address has one form.
func canonicalHost(host string) string {
	if name, port, err := net.SplitHostPort(host); err == nil && isPort(port) {
		host = name
	} else {
		host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().String()
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

func isPort(s string) bool {
	_, err := strconv.ParseUint(s, 10, 16)
	return err == nil
}

func isLoopbackHost(canonical string) bool {
	ip, err := netip.ParseAddr(canonical)
	return canonical == "localhost" || err == nil && ip.IsLoopback()
}
