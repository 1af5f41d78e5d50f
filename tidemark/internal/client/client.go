// Package client calls the services over HTTP: commands go to command-service, reads to query-service, rebuilds and audits
// to consumer-service. Requests and answers are those of the generated clients in shared/api. It bounds answers, times and
// waits, and its errors say whether the service was reached and what it answered. What to print, and with which status to
// exit, is left to the command line.
package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"strings"

	"github.com/tidemark/tidemark/shared/api/command"
	"github.com/tidemark/tidemark/shared/api/consumer"
	"github.com/tidemark/tidemark/shared/api/query"
	"github.com/tidemark/tidemark/shared/certs"
	"github.com/tidemark/tidemark/shared/config"
	"github.com/tidemark/tidemark/shared/service"
)

// Services say where the services are, and how to speak to them.
type Services struct {
	URLs   map[string]string // base URLs by the names of the table of services
	APIKey string            `env:"TIDEMARK_API_KEY" desc:"key to show to the services" secret:"true"`
	CAFile string            `env:"TIDEMARK_CA_FILE" desc:"authorities that sign the services' certificates, PEM; the system's unless given"`
}

// DefaultServices are where `tidemark up` and the services themselves listen.
func DefaultServices() Services {
	s := Services{URLs: map[string]string{}}
	for _, spec := range service.All() {
		s.URLs[spec.Name] = spec.DefaultURL()
	}
	return s
}

// LoadServices are the default ones, changed by the environment. The error names all mistakes.
func LoadServices(environ map[string]string) (Services, error) {
	s := DefaultServices()
	for _, spec := range service.All() {
		if url := environ[spec.URLVariable()]; url != "" {
			s.URLs[spec.Name] = url
		}
	}
	return s, config.LoadOwn(&s, environ)
}

// Settings lists the variables that LoadServices reads, with their defaults.
func Settings() []config.Setting {
	s := DefaultServices()
	var settings []config.Setting
	for _, spec := range service.All() {
		settings = append(settings, config.Setting{Name: spec.URLVariable(), Value: spec.DefaultURL(), Description: "base URL of " + spec.Name})
	}
	return append(settings, config.Settings(&s)...)
}

// Validate checks the URLs' form and the CA file.
func (s Services) Validate() error {
	var mistakes []error
	for _, spec := range service.All() {
		mistakes = append(mistakes, config.ServiceURL(spec.URLVariable(), s.URLs[spec.Name]))
	}
	if s.CAFile != "" {
		_, err := certs.Authorities("TIDEMARK_CA_FILE", s.CAFile)
		mistakes = append(mistakes, err)
	}
	return errors.Join(mistakes...)
}

// Client is ready for use by one or many goroutines.
type Client struct {
	services Services
	http     *http.Client

	command  *command.Client
	consumer *consumer.Client
	query    *query.Client
}

// New returns a client of services. Close ends its idle connections.
func New(services Services) *Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if services.CAFile != "" {
		// Validate has reported one that cannot be read; here it trusts nobody.
		pool, err := certs.Authorities("TIDEMARK_CA_FILE", services.CAFile)
		if err != nil {
			pool = x509.NewCertPool()
		}
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
	}
	c := &Client{services: services, http: &http.Client{
		Transport: transport,
		// An answer from elsewhere would be taken for the service's own.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	c.command = &command.Client{Server: c.server(service.Command), Client: &sender{c, service.Command}}
	c.consumer = &consumer.Client{Server: c.server(service.Consumer), Client: &sender{c, service.Consumer}}
	c.query = &query.Client{Server: c.server(service.Query), Client: &sender{c, service.Query}}
	return c
}

// server is a service's base URL with a slash at its end, as the generated clients want it.
func (c *Client) server(s service.Spec) string {
	return strings.TrimRight(c.services.URLs[s.Name], "/") + "/"
}

// Close ends the connections that are kept for reuse.
func (c *Client) Close() { c.http.CloseIdleConnections() }
