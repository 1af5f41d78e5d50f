// Package certs reads certificates, keys and authorities from files, for servers and for clients. An error names the
// variable and the file, and says why the file cannot be used. A Pair follows its files, so that a renewed certificate
// is served without a restart.
package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/tidemark/tidemark/shared/filewatch"
	"github.com/tidemark/tidemark/shared/loop"
)

// Files names a certificate and its key, and the variables that name them.
type Files struct {
	CertName, Cert string // the variable of the certificate, such as TLS_CERT_FILE, and the path in it
	KeyName, Key   string // the variable of the key, such as TLS_KEY_FILE, and the path in it
}

// Set reports whether either is named.
func (f Files) Set() bool { return f.Cert != "" || f.Key != "" }

// Load reads the pair and judges it at now: both files there, the key that of the certificate, the
// certificate valid now. The error names variable and file.
func (f Files) Load(now time.Time) (*tls.Certificate, error) {
	certPEM, keyPEM, err := f.read()
	if err != nil {
		return nil, err
	}
	return f.parse(certPEM, keyPEM, now)
}

func (f Files) read() (certPEM, keyPEM []byte, err error) {
	if f.Cert == "" || f.Key == "" {
		missing, there := f.CertName, f.KeyName
		if f.Cert != "" {
			missing, there = there, missing
		}
		return nil, nil, fmt.Errorf("%s is set and %s is not: a certificate and its key belong together", there, missing)
	}
	certPEM, certErr := read(f.CertName, f.Cert)
	keyPEM, keyErr := read(f.KeyName, f.Key)
	return certPEM, keyPEM, errors.Join(certErr, keyErr)
}

func (f Files) parse(certPEM, keyPEM []byte, now time.Time) (*tls.Certificate, error) {
	leaf, err := firstCertificate(certPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", f.CertName, f.Cert, err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		if block, _ := pem.Decode(keyPEM); block == nil {
			return nil, fmt.Errorf("%s: %s holds no private key in PEM form", f.KeyName, f.Key)
		}
		return nil, fmt.Errorf("%s: %s is not the key of the certificate in %s (%s): %w", f.KeyName, f.Key, f.Cert, f.CertName, err)
	}
	switch {
	case now.After(leaf.NotAfter):
		return nil, fmt.Errorf("%s: the certificate in %s has expired on %s: renew it", f.CertName, f.Cert, leaf.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return nil, fmt.Errorf("%s: the certificate in %s is valid from %s on, which is yet to come: look at the clock, or at the certificate", f.CertName, f.Cert, leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	pair.Leaf = leaf
	return &pair, nil
}

func firstCertificate(text []byte) (*x509.Certificate, error) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return nil, errors.New("it holds no certificate in PEM form")
		}
		if block.Type == "CERTIFICATE" {
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("its certificate cannot be read: %w", err)
			}
			return c, nil
		}
	}
}

func read(name, path string) ([]byte, error) {
	content, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s: there is no file %s", name, path)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, err) // it names the path
	}
	return content, nil
}

// Authorities reads the certificates of a CA file into a pool. The error names the variable and the file.
func Authorities(name, path string) (*x509.CertPool, error) {
	content, err := read(name, path)
	if err != nil {
		return nil, err
	}
	if _, err := firstCertificate(content); err != nil {
		return nil, fmt.Errorf("%s: %s: %w", name, path, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(content) {
		return nil, fmt.Errorf("%s: %s: no certificate in it can be read", name, path)
	}
	return pool, nil
}

// Untrusted adds to an error of a TLS handshake which CA file the peer's certificate was checked with, and what to
// do. Any other error is returned as it is. The name is that of the CA file's variable; an empty path stands for the
// system's authorities.
func Untrusted(err error, name, path string) error {
	if err == nil {
		return nil
	}
	by := "any authority of this system: name the right CA file in " + name
	if path != "" {
		by = "any authority in " + path + " (" + name + ")"
	}
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return fmt.Errorf("the other side's certificate is not signed by %s: %w", by, err)
	case errors.As(err, &host):
		return fmt.Errorf("the other side's certificate is for another host name: %w", err)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("the other side's certificate is not valid now: %w", err)
	}
	return err
}

// Pair is a certificate with its key that follows its files. It is safe for concurrent use.
type Pair struct {
	files   Files
	log     *slog.Logger
	current atomic.Pointer[tls.Certificate]

	// for Watch alone
	versions  filewatch.Versions
	cert, key []byte
	failure   string // why the newest version cannot be used
}

// Open reads the files for the first time.
func Open(files Files, log *slog.Logger) (*Pair, error) {
	p := &Pair{files: files, log: log}
	var err error
	if p.cert, p.key, err = files.read(); err != nil {
		return nil, err
	}
	c, err := files.parse(p.cert, p.key, time.Now())
	if err != nil {
		return nil, err
	}
	p.versions.Still(time.Time{}, p.cert, p.key)
	p.current.Store(c)
	return p, nil
}

// Server returns a configuration for serving with the pair.
func (p *Pair) Server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return p.current.Load(), nil
		},
	}
}

// Watch follows the files until ctx ends. A change counts once both files are still: see package filewatch. A new version that cannot be used is logged once, and the last good one
// is served on: a renewal that is half written must not end the service. Watch also warns of a certificate that
// ends soon.
func (p *Pair) Watch(ctx context.Context) {
	var warned time.Time
	loop.Every(ctx, filewatch.LookEvery, func(context.Context) {
		p.reload(time.Now())
		if left := time.Until(p.current.Load().Leaf.NotAfter); left < warnBefore && time.Since(warned) > time.Hour {
			warned = time.Now()
			p.log.Warn("the certificate ends soon: renew it", "path", p.files.Cert, "not_after", p.current.Load().Leaf.NotAfter)
		}
	})
}

// warnBefore is when to warn: whoever renews certificates by a program tries weeks earlier.
const warnBefore = 48 * time.Hour

// reload takes up a new version of the files, once that is still.
func (p *Pair) reload(now time.Time) {
	cert, key, err := p.files.read()
	if !p.versions.Still(now, cert, key) {
		return
	}
	if err == nil && bytes.Equal(cert, p.cert) && bytes.Equal(key, p.key) && p.failure == "" {
		return
	}
	var c *tls.Certificate
	if err == nil {
		c, err = p.files.parse(cert, key, now)
	}
	if err != nil {
		if failure := err.Error(); failure != p.failure {
			p.failure = failure
			p.log.Error("the new certificate cannot be used: the last good one is served on", "err", err)
		}
		return
	}
	p.cert, p.key, p.failure = cert, key, ""
	p.current.Store(c)
	p.log.Info("the certificate was renewed", "path", p.files.Cert, "not_after", c.Leaf.NotAfter)
}
